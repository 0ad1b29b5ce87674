"""How far clips and tensors differ, and how good a set of clips is; see README.md for which file holds what.

Exported here is what needs no package of the extra `metrics`.
"""

from models.metrics.bootstrap import MeanInterval, mean_interval
from models.metrics.fidelity import psnr_db, sqnr_db, ssim

__all__ = ["MeanInterval", "mean_interval", "psnr_db", "sqnr_db", "ssim"]
