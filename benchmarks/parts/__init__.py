"""What benchmarks are made of: data, servers, proxies, the machine, trainings."""
