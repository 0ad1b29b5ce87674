"""The paper's own figures, typed as printed: Tables I to V.

"Hardware-Friendly Static Quantization Method for Video Diffusion Transformers". Its data set 1 is the Open-Sora prompt
set, data set 2 UCF-101; the model is STDiT v1.0 at 20 steps. Ours is another model on other clips under other metrics:
figures may be compared down a column, never across. Where the paper prints no ranges, the method has one set of
parameters, or (TSW, TSQ) one for each of the 20 steps.
"""

from __future__ import annotations

from typing import NamedTuple


class PaperFigures(NamedTuple):
    """One printed row: CLIPSIM and CLIP-temp (0 to 1), VQA-aesthetic and VQA-technical (0 to 100); more is better."""

    clipsim: float
    clip_temp: float
    vqa_a: float
    vqa_t: float


Key = tuple[str, str, int]
"""Method by our name, bits of weights and activations as the paper prints them, time ranges."""

COLUMNS = {"clipsim": "CLIPSIM", "clip_temp": "CLIP-temp", "vqa_a": "VQA-a", "vqa_t": "VQA-t"}
STEPS = 20

LABELS = {
    "fp16": "FP16",
    "dynamic": "Dynamic",
    "cw_tw": "CW+TW (*)",
    "tsw": "+TSW",
    "asq": "+ASQ",
    "tsq": "+TSQ+TSW",
}
"""The paper's names of the methods in Tables I to III. In IV and V, `tsq` of n ranges is +TSQ+nTR, of one +ASQ."""

TABLE_I: dict[Key, PaperFigures] = {
    ("fp16", "16/16", 1): PaperFigures(0.1950, 0.9982, 54.2730, 49.9179),
    ("dynamic", "8/8", 1): PaperFigures(0.1960, 0.9982, 53.3998, 49.4671),
    ("cw_tw", "8/8", 1): PaperFigures(0.1931, 0.9966, 44.2729, 38.6906),
    ("tsw", "8/8", 20): PaperFigures(0.1931, 0.9972, 42.4221, 40.8720),
    ("asq", "8/8", 1): PaperFigures(0.1926, 0.9988, 52.9969, 49.9545),
    ("tsq", "8/8", 20): PaperFigures(0.1967, 0.9987, 47.5200, 39.0468),
}

TABLE_II: dict[Key, PaperFigures] = {
    ("fp16", "16/16", 1): PaperFigures(0.2058, 0.9970, 26.3483, 34.5356),
    ("dynamic", "8/8", 1): PaperFigures(0.2049, 0.9968, 25.6435, 34.6162),
    ("cw_tw", "8/8", 1): PaperFigures(0.2033, 0.9955, 18.1882, 22.8154),
    ("tsw", "8/8", 20): PaperFigures(0.2025, 0.9958, 17.9768, 24.7684),
    ("asq", "8/8", 1): PaperFigures(0.2048, 0.9975, 24.6499, 31.9683),
    ("tsq", "8/8", 20): PaperFigures(0.2084, 0.9986, 10.2957, 17.4171),
}

# VQA-a of asq at 8/8 stands as 53.9969 here and as 52.9969 in Tables I and IV.
TABLE_III: dict[Key, PaperFigures] = {
    ("fp16", "16/16", 1): PaperFigures(0.1950, 0.9982, 54.2730, 49.9179),
    ("tsq", "4/4", 20): PaperFigures(0.1569, 0.9967, 0.0257, 0.0008),
    ("asq", "4/4", 1): PaperFigures(0.1538, 0.9974, 0.0171, 0.0009),
    ("dynamic", "4/4", 1): PaperFigures(0.1786, 0.9729, 2.7089, 0.4849),
    ("tsq", "4/6", 20): PaperFigures(0.1909, 0.9981, 4.8082, 5.4387),
    ("asq", "4/6", 1): PaperFigures(0.1838, 0.9983, 0.0557, 0.0686),
    ("dynamic", "4/6", 1): PaperFigures(0.1817, 0.9976, 0.1681, 0.2958),
    ("tsq", "6/6", 20): PaperFigures(0.1864, 0.9981, 9.2497, 9.2459),
    ("asq", "6/6", 1): PaperFigures(0.1829, 0.9986, 0.0961, 0.0781),
    ("dynamic", "6/6", 1): PaperFigures(0.1881, 0.9981, 18.9117, 15.1275),
    ("tsq", "4/8", 20): PaperFigures(0.1922, 0.9994, 24.5604, 24.0194),
    ("asq", "4/8", 1): PaperFigures(0.1849, 0.9984, 26.9354, 15.8466),
    ("dynamic", "4/8", 1): PaperFigures(0.1849, 0.9986, 0.0404, 0.3072),
    ("tsq", "6/8", 20): PaperFigures(0.1962, 0.9987, 36.0467, 40.6366),
    ("asq", "6/8", 1): PaperFigures(0.1910, 0.9991, 25.6601, 17.4476),
    ("dynamic", "6/8", 1): PaperFigures(0.1903, 0.9990, 28.2134, 21.8238),
    ("tsq", "8/8", 20): PaperFigures(0.1967, 0.9987, 47.5200, 39.0468),
    ("asq", "8/8", 1): PaperFigures(0.1926, 0.9988, 53.9969, 49.9545),
    ("dynamic", "8/8", 1): PaperFigures(0.1960, 0.9982, 53.3998, 49.4671),
    ("tsq", "4/16", 20): PaperFigures(0.1911, 0.9996, 28.3527, 12.5568),
    ("asq", "4/16", 1): PaperFigures(0.1895, 0.9988, 31.6746, 35.4823),
    ("dynamic", "4/16", 1): PaperFigures(0.1871, 0.9972, 0.0237, 0.0240),
    ("tsq", "6/16", 20): PaperFigures(0.1960, 0.9996, 26.2750, 17.4801),
    ("asq", "6/16", 1): PaperFigures(0.1959, 0.9989, 44.6240, 38.0148),
    ("dynamic", "6/16", 1): PaperFigures(0.1854, 0.9983, 8.3704, 10.7042),
    ("tsq", "8/16", 20): PaperFigures(0.1953, 0.9988, 46.8446, 38.9204),
    ("asq", "8/16", 1): PaperFigures(0.1963, 0.9982, 53.2460, 51.9194),
    ("dynamic", "8/16", 1): PaperFigures(0.1871, 0.9981, 24.0312, 26.8858),
}

TABLE_III_AVERAGES: dict[str, PaperFigures] = {
    "tsq": PaperFigures(0.1891, 0.9986, 24.8537, 20.8162),
    "asq": PaperFigures(0.1856, 0.9985, 26.1451, 23.2014),
    "dynamic": PaperFigures(0.1866, 0.9953, 15.0964, 13.9022),
}

TABLE_IV: dict[Key, PaperFigures] = {
    ("asq", "8/8", 1): PaperFigures(0.1926, 0.9988, 52.9969, 49.9545),
    ("tsq", "8/8", 2): PaperFigures(0.1960, 0.9981, 42.2731, 43.7837),
    ("tsq", "8/8", 4): PaperFigures(0.1957, 0.9978, 43.3432, 46.1740),
    ("tsq", "8/8", 10): PaperFigures(0.1946, 0.9978, 40.5217, 42.3603),
    ("tsq", "8/8", 20): PaperFigures(0.1967, 0.9987, 47.5200, 39.0468),
}

TABLE_V: dict[Key, PaperFigures] = {
    ("asq", "8/8", 1): PaperFigures(0.2048, 0.9975, 24.6499, 31.9683),
    ("tsq", "8/8", 2): PaperFigures(0.2039, 0.9966, 18.0531, 23.2528),
    ("tsq", "8/8", 4): PaperFigures(0.2054, 0.9967, 18.3887, 26.8416),
    ("tsq", "8/8", 10): PaperFigures(0.2063, 0.9967, 14.2008, 22.1882),
    ("tsq", "8/8", 20): PaperFigures(0.2084, 0.9986, 10.2957, 17.4171),
}

TABLES = {"I": TABLE_I, "II": TABLE_II, "III": TABLE_III, "IV": TABLE_IV, "V": TABLE_V}
