"""When and where: Prefect flows over `pipelines`. They pass URIs and versions, never tensors."""
