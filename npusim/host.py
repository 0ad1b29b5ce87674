"""The host's side of a run: floats to fixed-point buffer contents before it, and back to floats after it.

Floats exist here and nowhere behind: the simulation gets and gives integer arrays of the shapes that
``program.buffers`` names. The position of the binary point comes from ``program.host``: value = integer * 2^-bits.

A latent clip is (4, T, H, W). The program holds it as tokens (N, 16): one row for each frame and 2 x 2 patch, in the
order (t, h / 2, w / 2), and inside a row (channel, patch row, patch column).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npusim.errors import UserError
from npusim.isa.encoding import DTYPES
from npusim.program import Program

Float64 = NDArray[np.float64]
Integers = NDArray[np.signedinteger]

PATCH = 2
FRACTIONS = (
    "text_fraction_bits",
    "state_fraction_bits",
    "noise_fraction_bits",
    "eps_fraction_bits",
    "raw_eps_fraction_bits",
    "v_fraction_bits",
)


def latents_to_tokens(latents: NDArray[np.generic]) -> NDArray[np.generic]:
    """(..., C, T, H, W) to (..., T * H/2 * W/2, C * 4); H and W are even."""
    *lead, channels, frames, height, width = latents.shape
    rows, columns = height // PATCH, width // PATCH
    split = latents.reshape(*lead, channels, frames, rows, PATCH, columns, PATCH)
    moved = np.moveaxis(split, (-6, -5, -4, -3, -2, -1), (-3, -6, -5, -2, -4, -1))
    return moved.reshape(*lead, frames * rows * columns, channels * PATCH * PATCH)


def tokens_to_latents(tokens: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """(N, C * 4) back to ``shape`` = (C, T, H, W); the inverse of `latents_to_tokens`."""
    channels, frames, height, width = shape
    split = tokens.reshape(frames, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2, 5).reshape(shape))


def to_fixed(values: NDArray[np.generic], fraction_bits: int, dtype: str) -> Integers:
    """``round(values * 2^fraction_bits)``, ties to even, saturated to the element type ``dtype``."""
    kind, low, high = DTYPES[dtype]
    scaled = np.rint(np.asarray(values, np.float64) * 2.0**fraction_bits)
    return np.asarray(np.clip(scaled, low, high).astype(kind))


def to_float(values: NDArray[np.generic], fraction_bits: int) -> Float64:
    """``values * 2^-fraction_bits`` in float64: exact, since no element type has more than 32 bits."""
    return np.asarray(values, np.float64) * 2.0**-fraction_bits


@dataclass(frozen=True)
class Host:
    """Converts for one program and one latent shape (C, T, H, W).

    Raises:
        UserError: the program lacks a buffer or a fixed-point entry, or its buffers hold another number of tokens.
    """

    program: Program
    latent_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        missing = [name for name in FRACTIONS if not isinstance(self.program.host.get(name), int)]
        if missing:
            raise UserError(f"program: host entry {missing[0]!r} is missing or not an integer")
        channels, frames, height, width = self.latent_shape
        tokens, values = frames * (height // PATCH) * (width // PATCH), channels * PATCH * PATCH
        steps = self.program.steps
        expected = {
            "state": (tokens, values),
            "eps": (tokens, values),
            "noise": (steps, tokens, values),
            "raw": (self.branches * tokens, 2 * values),
            "text_len": (1, 1),
        }
        for name, shape in expected.items():
            buffer = self.program.buffers.get(name)
            given = "missing" if buffer is None else str(buffer.shape)
            if buffer is None or int(np.prod(buffer.shape)) != int(np.prod(shape)):
                raise UserError(f"program: buffer {name!r} is {given}; latents {self.latent_shape} need {shape}")
        text = self.program.buffers.get("text")
        if text is None or len(text.shape) != 2:
            raise UserError("program: buffer 'text' is missing or not a matrix")

    @property
    def branches(self) -> int:
        """Guidance branches that the program runs: 2, or 1."""
        raw, state = (self.program.buffers.get(name) for name in ("raw", "state"))
        return 1 if raw and state and raw.shape[0] == state.shape[0] else 2

    def inputs(
        self, text: NDArray[np.generic], mask: NDArray[np.bool_], x_T: NDArray[np.generic], noise: NDArray[np.generic]
    ) -> Mapping[str, Integers]:
        """Contents of the input buffers.

        Args:
            text: (L, caption channels) token states of the prompt; rounded, saturating.
            mask: (L,) bool; the valid tokens come first.
            x_T: (C, T, H, W), the initial state; exact in the program's fixed point, as `models.iddpm.draw_noise` makes
                it, so that float and integer runs hold the same noise.
            noise: (steps, C, T, H, W), likewise.

        Raises:
            UserError: a shape does not fit, the mask has a gap or no token, or noise would be rounded or saturated.
        """
        bits = self.program.host
        shape = self.program.buffers["text"].shape
        if text.shape != shape or mask.shape != shape[:1]:
            raise UserError(
                f"text states {text.shape} with mask {mask.shape}; the program takes {shape} and {shape[:1]}"
            )
        count = int(mask.sum())
        if not count or not mask[:count].all():
            raise UserError(f"text mask {mask.astype(int).tolist()}: valid tokens must come first, at least one")
        steps = (self.program.steps, *self.latent_shape)
        if x_T.shape != self.latent_shape or noise.shape != steps:
            raise UserError(f"x_T {x_T.shape}, noise {noise.shape}; allowed {self.latent_shape} and {steps}")
        drawn = {
            "state": to_fixed(latents_to_tokens(x_T), bits["state_fraction_bits"], "i32"),
            "noise": to_fixed(latents_to_tokens(noise), bits["noise_fraction_bits"], "i16"),
        }
        for name, values in (("state", x_T), ("noise", noise)):
            if not np.array_equal(to_float(drawn[name], bits[f"{name}_fraction_bits"]), latents_to_tokens(values)):
                raise UserError(f"{name}: values are not multiples of 2^-{bits[f'{name}_fraction_bits']} in range")
        return drawn | {
            "text": to_fixed(text, bits["text_fraction_bits"], "i16"),
            "text_len": np.array([[count]], np.int32),
        }

    def state_in(self, latents: NDArray[np.generic]) -> Integers:
        """Any state (C, T, H, W) as "state" tokens; rounded to the grid, saturating."""
        return to_fixed(latents_to_tokens(latents), self.program.host["state_fraction_bits"], "i32")

    def state_out(self, tokens: Integers) -> Float64:
        """Return "state" tokens (N, 16) as latents (C, T, H, W)."""
        return self._latents(tokens, "state_fraction_bits")

    def eps_out(self, tokens: Integers) -> Float64:
        """Return "eps" tokens (N, 16), the guided noise prediction, as latents (C, T, H, W)."""
        return self._latents(tokens, "eps_fraction_bits")

    def raw_out(self, rows: Integers) -> tuple[Float64, Float64, Float64]:
        """Return "raw" rows (2 N, 32) as (eps_cond, eps_uncond, v_cond), each (C, T, H, W).

        The rows are the conditional branch's, then the unconditional one's (or one's alone, which is then both); the
        columns noise prediction, then variance.
        """
        tokens, values = rows.shape[0] // self.branches, rows.shape[1] // 2
        return (
            self._latents(rows[:tokens, :values], "raw_eps_fraction_bits"),
            self._latents(rows[-tokens:, :values], "raw_eps_fraction_bits"),
            self._latents(rows[:tokens, values:], "v_fraction_bits"),
        )

    def _latents(self, tokens: Integers, bits: str) -> Float64:
        return to_float(tokens_to_latents(tokens, self.latent_shape), self.program.host[bits])
