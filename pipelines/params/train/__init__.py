"""The parameters of training: model, optimiser, schedule, parallelism, communication, checkpoints, launching."""
