"""The least-squares fit of a map that lets a projection stand in for the layers after it, from sums over tokens.

With M the projection's output, H the output of its layer and E the output of the last layer that goes, a token is right
after the cut when M T + (H - M) = E. So T = I + D, where M D should be E - H. A ridge pulls D to zero.

A few tokens, attention sinks, have outputs a thousand times larger than all others. Within the fit they would outweigh
everything; outside it, the map would do anything to them, and they hold the model together. So they are left out, and D
reads nothing along their directions V: T = I + (I - V V^T) D.

Shapes: N tokens, D hidden size, K directions.
"""

import torch
from torch import Tensor

SINK_FACTOR = 20.0
"""A token counts as a sink when the norm of its output is more than this many times the median norm."""
RIDGE = 1e-3
"""Weight of the ridge, as a share of the mean square of the projection's outputs."""

_MAX_SINKS = 1024
_MAX_DIRECTIONS = 16


class FitSums:
    """What is kept of the tokens of one cut: two [D, D] matrices, all norms, and the few sinks."""

    def __init__(self, width: int, device: torch.device) -> None:
        """Start with no tokens; the matrices are on ``device``, which has float64."""
        self.device = device
        self._products_DD = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._targets_DD = torch.zeros_like(self._products_DD)
        self._norms: list[Tensor] = []
        self._sinks: list[Tensor] = []
        self.num_tokens = 0
        """Tokens in the sums, sinks not among them."""
        self.num_sinks = 0

    def add(self, outputs_ND: Tensor, changes_ND: Tensor) -> None:
        """Add tokens: the projection's outputs M and what the layers that go add, E - H, each [N, D].

        Which of them are sinks is told from the median norm of the tokens so far, so the first should be many.
        """
        outputs_ND, changes_ND = (part.to(self._products_DD) for part in (outputs_ND, changes_ND))
        norms_N = outputs_ND.norm(dim=-1)
        self._norms.append(norms_N.cpu())
        is_sink_N = norms_N > SINK_FACTOR * torch.cat(self._norms).median().to(norms_N.device)
        self.num_sinks += int(is_sink_N.sum())
        if self.num_sinks <= _MAX_SINKS:
            self._sinks += outputs_ND[is_sink_N].cpu().unbind()
        outputs_ND, changes_ND = outputs_ND[~is_sink_N], changes_ND[~is_sink_N]
        self._products_DD += outputs_ND.T @ outputs_ND
        self._targets_DD += outputs_ND.T @ changes_ND
        self.num_tokens += len(outputs_ND)

    def add_states(self, outputs_ND: Tensor, scale: float, hidden_ND: Tensor, end_ND: Tensor) -> None:
        """Add tokens by what was seen: the projection's outputs and their factor, H and E, on any devices."""
        wide = [part.to(self.device).double() for part in (outputs_ND, hidden_ND, end_ND)]
        self.add(wide[0] * scale, wide[2] - wide[1])

    def correction(self, ridge: float = RIDGE) -> tuple[Tensor, int]:
        """Return T - I, [D, D] in float64 on the CPU, and along how many directions of the sinks it does nothing."""
        products_DD, targets_DD = self._products_DD.cpu(), self._targets_DD.cpu()
        directions_DK = self.sink_directions()
        products_DD = _without(directions_DK, _without(directions_DK, products_DD).T)
        targets_DD = _without(directions_DK, targets_DD)
        strength = ridge * float(products_DD.diagonal().mean()) or 1.0  # all outputs are 0: the map is the identity
        products_DD.diagonal().add_(strength)
        solved_DD = torch.cholesky_solve(targets_DD, torch.linalg.cholesky(products_DD))
        return _without(directions_DK, solved_DD), directions_DK.shape[1]

    def sink_directions(self) -> Tensor:
        """Return the directions [D, K] that the sinks lie along, up to what an ordinary token has of any direction."""
        width = len(self._products_DD)
        if not self._sinks:
            return torch.zeros(width, 0, dtype=torch.float64)
        sinks_ND = torch.stack(self._sinks)
        allowed = float(torch.cat(self._norms).median())
        _, _, right_KD = torch.linalg.svd(sinks_ND, full_matrices=False)
        for count in range(1, min(len(right_KD), _MAX_DIRECTIONS) + 1):
            directions_DK = right_KD[:count].T
            left_DN = _without(directions_DK, sinks_ND.T)
            if float(left_DN.norm(dim=0).max()) <= allowed:
                break
        return directions_DK


def _without(directions_DK: Tensor, columns_DX: Tensor) -> Tensor:
    """Return columns less what they have of the directions: (I - V V^T) X."""
    return columns_DX - directions_DK @ (directions_DK.T @ columns_DX)
