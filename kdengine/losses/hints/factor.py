"""Factor transfer: a teacher's feature paraphrased, a student's translated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from kdengine.api import Batch, ConfigurationError, Scalar
from kdengine.losses.arguments import check_choice, check_number
from kdengine.losses.hints.maps import require_maps, same_size, unit
from kdengine.losses.hints.pairs import Pair, Paths
from kdengine.losses.hints.pairwise import PairwiseLoss

SLOPE = 0.1
"""Of the leaky ReLUs for negative values, as published."""


class Factor(PairwiseLoss):
    """The student's translated feature regresses the teacher's paraphrased one (factor transfer).

    A paraphraser, an autoencoder of the teacher's feature T, gives the teacher's factors ``F_T = E(T)``; a translator
    the student's, ``F_S = R(S)``. Summed over pairs of layers, for each item::

        transfer         transfer_weight * mean | F_T / |F_T| - F_S / |F_S| |^p        p = 1 or 2
        reconstruction   reconstruction_weight * mean ( T - D(E(T)) )^2

    with the Euclidean length of all of an item's factors. The transfer trains student and translator, the teacher's
    factors are constants for it; the reconstruction trains the paraphraser alone. The paper's norms are sums over
    elements. The means are those of the published code, which has a transfer weight of 500, and an absolute error in
    the reconstruction, where the paper has the square.

    The paper trains the paraphraser beforehand, then keeps it. In a recipe schedules do this, here for a tenth of the
    steps::

        transfer_weight = { schedule = "piecewise", points = [[0, 0], [0.1, 500]], interpolation = "constant" }
        reconstruction_weight = { schedule = "piecewise", points = [[0, 1], [0.1, 0]], interpolation = "constant" }

    (The paraphraser's gradient is zero afterwards, but an optimizer with weight decay goes on shrinking it, unless
    ``losses.*`` is a parameter group without decay.) In a script, ``paraphrasers`` takes the trained ones of another
    fit: they stay as they are, and there is no reconstruction. With the defaults the paraphraser trains while the
    student follows it, and the transfer may rise while the factors still change.

    Shapes:
        maps ``(B, C, H, W)``; channels may differ, and of different sizes the larger factors are average-pooled.

    References:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
        section 3; arXiv:1802.04977

    Args:
        student: paths of modules of the student; see :class:`~kdengine.losses.hints.pairs.FeatureLoss`. The paper takes
            the last group of convolutions.
        teacher: paths of modules of the teacher, as many.
        rate: k, channels of the factors for each channel of the teacher.
        p: 1 or 2.
        transfer_weight: factor of the transfer.
        reconstruction_weight: factor of the reconstruction.
        paraphrasers: trained ones, a module for each pair that gives the factors ``(B, C', H, W)`` of the teacher's
            feature, such as :attr:`paraphrasers` of another loss of this class.

    Example:
        >>> Factor(student="layer3", teacher="layer3").terms
        ('transfer', 'reconstruction')
    """

    detaches: ClassVar[bool] = True

    def __init__(
        self,
        student: Paths,
        teacher: Paths,
        rate: float = 0.5,
        p: Literal[1, 2] = 1,
        transfer_weight: Scalar = 500.0,
        reconstruction_weight: Scalar = 1.0,
        paraphrasers: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__(student, teacher)
        check_number("factor", "rate", rate, above=0.0)
        check_choice("factor", "p", p, (1, 2))
        check_number("factor", "transfer_weight", transfer_weight, least=0.0)
        check_number("factor", "reconstruction_weight", reconstruction_weight, least=0.0)
        self.rate = rate
        self.p = p
        self.transfer_weight = transfer_weight
        self.reconstruction_weight = reconstruction_weight
        self.trained = None if paraphrasers is None else tuple(paraphrasers)
        self.terms = ("transfer", "reconstruction") if paraphrasers is None else ("transfer",)

    @property
    def paraphrasers(self) -> list[nn.Module]:
        """What gives the teacher's factors, for each pair, once ``setup`` ran."""
        return [cast("Factors", part).paraphraser for part in self.learned]

    def prepare(self, pair: Pair, names: tuple[str, str], example: Batch) -> nn.Module:
        """The paraphraser and the translator of a pair."""
        require_maps(*pair)
        channels, wanted = (feature.shape[1] for feature in pair)
        if self.trained is None:
            width = max(1, round(wanted * self.rate))
            return Factors(Convolutions(wanted, width), Convolutions(channels, width), Decoder(wanted, width))
        paths = self.names(example)
        if len(self.trained) != len(paths):
            raise ConfigurationError(f"{len(self.trained)} paraphrasers were given for {len(paths)} pairs")
        paraphraser = Frozen(self.trained[paths.index(names)]).to(pair.teacher)
        factors = paraphraser(pair.teacher)
        if factors.ndim != 4 or factors.shape[0] != pair.teacher.shape[0]:
            raise ConfigurationError(f"the paraphraser gives {tuple(factors.shape)}; expected factors (B, C, H, W)")
        return Factors(paraphraser, Convolutions(channels, factors.shape[1]), None)

    def per_item(self, batch: Batch) -> Mapping[str, Tensor]:
        """The terms of each item, ``(B,)``."""
        transfers, errors = [], []
        for pair, learned in zip(self.pairs(batch), self.learned, strict=True):
            part = cast("Factors", learned)
            wanted = part.paraphraser(pair.teacher)
            transfers.append(self.distance(part.translator(pair.student), wanted.detach()))
            if part.decoder is not None:
                error = part.decoder(wanted) - pair.teacher
                errors.append(error.square().flatten(1).mean(dim=1))
        terms = {"transfer": self.transfer_weight * self.combine(transfers)}
        return {**terms, "reconstruction": self.reconstruction_weight * self.combine(errors)} if errors else terms

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean difference of each item's normalized factors, ``(B,)``."""
        ours, theirs = (unit(factors.flatten(1)) for factors in same_size(student, teacher))
        return (ours - theirs).abs().pow(self.p).mean(dim=1)


class Factors(nn.Module):
    """What belongs to a pair: paraphraser, translator, and the paraphraser's decoder while it trains."""

    def __init__(self, paraphraser: nn.Module, translator: nn.Module, decoder: nn.Module | None) -> None:
        super().__init__()
        self.paraphraser = paraphraser
        self.translator = translator
        self.decoder = decoder


class Convolutions(nn.Sequential):
    """Three 3x3 convolutions with leaky ReLUs behind them: a translator, or a paraphraser's encoder.

    Args:
        channels: of the feature, and of the first convolution.
        width: of the others, the channels of the factors.
    """

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for ours, theirs in ((channels, channels), (channels, width), (width, width)):
            layers += [nn.Conv2d(ours, theirs, 3, padding=1), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers)


class Decoder(nn.Sequential):
    """Three transposed 3x3 convolutions with leaky ReLUs behind them, from the factors to the teacher's feature."""

    def __init__(self, channels: int, width: int) -> None:
        layers: list[nn.Module] = []
        for ours, theirs in ((width, width), (width, channels), (channels, channels)):
            layers += [nn.ConvTranspose2d(ours, theirs, 3, padding=1), nn.LeakyReLU(SLOPE)]
        super().__init__(*layers)


class Frozen(nn.Module):
    """A copy of a module that does not train: its parameters are buffers, and it stays in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        for part in self.module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                delattr(part, name)
                part.register_buffer(name, parameter.detach())
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, feature: Tensor) -> Tensor:
        """What the module gives."""
        factors: Tensor = self.module(feature)
        return factors
