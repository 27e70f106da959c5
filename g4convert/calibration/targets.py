"""Keeps the original's next-token probabilities in a form that is cheap to compare with.

With p the original's probabilities and d the differences of a student's logits from the original's,

    KL = log sum p e^d - sum p d        both sums over the vocabulary

The likeliest ids are summed exactly. The others are sampled by p: their total probability is cut into equal parts, one
id is drawn from each part and stands for it, so both sums keep their expectation. A token costs 320 rows of the head,
not 262,144, and its target takes 2.5 KiB, not 1 MiB. A vocabulary of up to 320 ids is summed whole.

Letters: s sequences, t tokens of each, h hidden size, V vocabulary, c kept ids of a token.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from g4convert.array_types import F32, I32
from g4convert.calibration.states import SCRATCH, States
from g4convert.forward.logits import Head, Page
from g4convert.planning.between import TARGET_IDS

_DRAWN: Final = 64
_LIKELIEST: Final = TARGET_IDS - _DRAWN
_ROWS: Final = 64
"""Tokens to compare, or to make logits for, at a time."""
_STATES, _IDS, _WEIGHTS, _DONE = (f"{SCRATCH}target-{name}" for name in ("states", "ids", "weights", "done"))


@dataclass(frozen=True, slots=True)
class Compared:
    """Comparison of a student with the original on one sequence.

    Args:
        kl: KL of each token in nats, float32 [t].
        slope: gradient of the KL's sum by the student's states, float32 [t, h].
    """

    kl: torch.Tensor
    slope: torch.Tensor


@dataclass(frozen=True, slots=True)
class SoftTargets:
    """Final states of the original, and the kept ids of each token with their weights.

    Args:
        files: directory of the arrays.
        head: head of the original, a plain matrix.
        states: final states, float32 [s, t, h].
        ids: kept ids, int32 [s, t, c].
        weights: weights of the kept ids, float32 [s, t, c]; those of a token sum to 1.
        done: float32 [s], 1 for a finished sequence.
    """

    files: States
    head: Head
    states: F32
    ids: I32
    weights: F32
    done: F32

    @staticmethod
    def left(files: States, samples: int) -> list[int]:
        """Return the numbers of the sequences, below `samples`, that no earlier run has finished."""
        if not files.has(_DONE):
            return [*range(samples)]
        return [int(s) for s in np.flatnonzero(files.open(_DONE, (samples,)) == 0)]

    @classmethod
    def open(cls, files: States, head: Head, samples: int, length: int) -> "SoftTargets":
        """Open the arrays of an earlier run, or make new ones.

        Raises:
            EnvironmentFault: the disk is full.
            InputError: an existing array has another size.
        """
        vocabulary, hidden = head.matrix.shape
        kept = min(TARGET_IDS, vocabulary)
        get = files.open if files.has(_DONE) else files.make
        states = get(_STATES, (samples, length, hidden))
        ids, weights = (get(name, (samples, length, kept)) for name in (_IDS, _WEIGHTS))
        return cls(files, head, states, ids.view(np.int32), weights, get(_DONE, (samples,)))

    def make(self, s: int, states: torch.Tensor) -> None:
        """Make the targets of a sequence, and wait until they are on disk.

        Args:
            s: number of the sequence.
            states: final states of the original, float32 [t, h].
        """
        draw, page, cap = torch.Generator().manual_seed(s), Page(), self.head.cap
        for begin in range(0, len(states), _ROWS):
            rows = slice(begin, begin + _ROWS)
            logits = page.buffer(0, len(states[rows]), len(self.head.matrix))
            self.head.raw(states[rows], logits)
            ids, weights = _choose_ids(_apply_softcap(logits, cap), draw)
            self.ids[s, rows], self.weights[s, rows] = ids.numpy(), weights.numpy()
        self.states[s] = states.numpy()
        self.files.sync(_STATES, _IDS, _WEIGHTS)
        self.done[s] = 1

    def compare(self, s: int, states: torch.Tensor) -> Compared:
        """Compare a student's final states [t, h] of sequence `s`."""
        parts = [self._compared(s, slice(at, at + _ROWS), states) for at in range(0, len(states), _ROWS)]
        return Compared(torch.cat([part.kl for part in parts]), torch.cat([part.slope for part in parts]))

    def _compared(self, s: int, rows: slice, states: torch.Tensor) -> Compared:
        cap = self.head.cap
        theirs, ids, p = (torch.from_numpy(np.array(of[s, rows])) for of in (self.states, self.ids, self.weights))
        columns, mine = self.head.matrix[ids].float(), states[rows].detach()
        if cap is None:
            d = torch.bmm(columns, (mine - theirs)[:, :, None])[:, :, 0]
            steep = None
        else:
            bent = torch.bmm(columns, mine[:, :, None])[:, :, 0].div_(cap).tanh_()
            d = (bent - torch.bmm(columns, theirs[:, :, None])[:, :, 0].div_(cap).tanh_()) * cap
            steep = 1 - bent.square()
        grown = p * d.exp()
        total = grown.sum(-1, keepdim=True)
        slope = grown / total - p
        if steep is not None:
            slope *= steep
        return Compared(total[:, 0].log() - (p * d).sum(-1), torch.bmm(slope[:, None], columns)[:, 0])


def _apply_softcap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Apply the softcap to logits, in place."""
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _choose_ids(logits: torch.Tensor, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the kept ids [r, c] and their weights [r, c] from `logits` [r, V], which are overwritten."""
    r, vocabulary = logits.shape
    p = logits.sub_(logits.logsumexp(-1, keepdim=True)).exp_()
    if vocabulary <= TARGET_IDS:
        return torch.arange(vocabulary).expand(r, -1), p
    weights, ids = p.topk(_LIKELIEST)
    edges = p.scatter_(1, ids, 0).cumsum_(-1)
    rest = edges[:, -1:].clone()
    places = (torch.arange(_DRAWN) + torch.rand(r, _DRAWN, generator=draw)) * (rest / _DRAWN)
    drawn = torch.searchsorted(edges, places).clamp_(max=vocabulary - 1)
    whole = torch.cat((weights, rest.expand(-1, _DRAWN) / _DRAWN), -1)
    return torch.cat((ids, drawn), -1), whole / whole.sum(-1, keepdim=True)
