"""The smallest case, and rates of a machine, that tests of the suite share."""

import torch

from bench.suite.cases import Case

RATES = {"copy_bytes_per_second": 1e10, "matmul_flops_per_second": 1e11}
CPU, TINY = torch.device("cpu"), Case(8, 4, 8, width=8)
