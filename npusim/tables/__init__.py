"""The paper's tables on a workload of ours: what is measured, how, and the files (`npusim evaluate --tables`)."""
