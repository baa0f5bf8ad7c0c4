"""Which chain to write in the place of a layer: by energy, rank, budgets, and latency measured here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from onnxcompress.base import Number
from onnxcompress.chains import Chain, chain, rewritten
from onnxcompress.convolve import Ints, Window
from onnxcompress.cost import Cost, chain_cost
from onnxcompress.factors import Method, Ranks
from onnxcompress.measure import Latency
from onnxcompress.parts import Stopwatch, cut, faster

Timed = Callable[[Sequence[Chain]], list[Latency]]
BLOCK = 16  # channels that engines work on at once: chains of such ranks are timed, too
_ROUNDING = 1e-9  # of the energy that all ranks together keep


def timer(watch: Stopwatch, model: ir.Model, node: ir.Node) -> Timed:
    """Return what times chains in the place of `node`, a layer of `model`; ratios are to its own latency.

    CompressError, now or later, where that can't be done.
    """
    part = cut(model, [node])
    return lambda chains: watch.times([part, *(rewritten(part, each) for each in chains)])[1:]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a chain must keep and may cost: the options of ``factorise`` of these names."""

    energy: float
    rank: int
    params: float
    macs: float
    latency: float
    when: str

    @property
    def by_energy(self) -> bool:
        """Whether the energy decides on ranks, and no rank or budget does."""
        return not self.rank and self.params == self.macs == self.latency == 1

    @property
    def by_time(self) -> bool:
        """Whether chains are timed."""
        return self.when == "faster" or self.latency < 1

    def best(
        self,
        methods: Sequence[Method],
        whole: Window,
        sizes: Ints,
        timed: Timed | None,
        numbers: dict[str, Number],
    ) -> Chain | str:
        """Return the chain to take for a layer of the window `whole`, or why none is.

        `sizes` are the spatial ones of what it reads; what was measured goes into `numbers`.
        """
        before = chain_cost([whole], sizes)
        made = [partial(chain, method, whole=whole, sizes=sizes) for method in methods]
        offers = [each for make in made for each in self._offers(make.args[0], make, before, timed)]
        if not offers:
            return "not cheaper" if self.by_energy else "no chain within the budget"
        if timed is None:
            return min(offers, key=lambda each: each.cost.share(before) if self.by_energy else -each.kept)
        found = list(zip(timed(offers), offers, strict=True))
        fit = [each for each in found if self._fast(each[0])]
        if fit and not self.by_energy:
            latency, best = max(fit, key=lambda each: each[1].kept)
        else:
            latency, best = min(fit or found, key=lambda each: each[0].ratio)
        numbers |= latency.numbers
        if fit:
            return best
        numbers["tried"] = f"{best.method.name} {'x'.join(map(str, best.ranks))}"
        return "not faster here"

    def _offers(
        self, method: Method, make: Callable[[Ranks], Chain], before: Cost, timed: Timed | None
    ) -> Iterator[Chain]:
        """Yield the chains that `method` offers, made by `make`: one, none, or two to be timed."""
        ladder: Sequence[Ranks] = method.ladder
        if self.rank:
            ladder = list(dict.fromkeys(tuple(min(each, self.rank) for each in ranks) for ranks in ladder))
        end = bisect_left(ladder, True, key=lambda ranks: not self._allows(make(ranks), before))
        if timed is not None and self.latency < 1:
            end = bisect_left(ladder, True, hi=end, key=lambda ranks: not self._fast(*timed([make(ranks)])))
        place = end - 1
        if self.by_energy:
            wanted = self.energy - _ROUNDING
            place = bisect_left(ladder, True, hi=end, key=lambda ranks: method.kept(ranks) >= wanted)
        if not 0 <= place < end:
            return
        yield make(ladder[place])
        if timed is not None and self.by_energy:
            even = tuple(-(-rank // BLOCK) * BLOCK for rank in ladder[place])
            inside = all(rank <= most for rank, most in zip(even, ladder[-1], strict=True))
            if even != ladder[place] and inside and self._allows(make(even), before):
                yield make(even)

    def _allows(self, chain: Chain, before: Cost) -> bool:
        """Return whether `chain` has no more of anything than is allowed."""
        after = chain.cost
        return (
            not (self.params < 1 and after.parameters > self.params * before.parameters)
            and not (self.macs < 1 and after.macs > self.macs * before.macs)
            and (self.when == "always" or (after.parameters < before.parameters and after.macs < before.macs))
        )

    def _fast(self, latency: Latency) -> bool:
        """Return whether a chain that was measured so is fast enough, by the upper end of the interval."""
        return faster(latency) and latency.high <= self.latency
