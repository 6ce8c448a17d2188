r"""Gradients of all terms of a loss from one backward pass, layer by layer.

The loss of a simulation depends on its own row of a batch alone. Let a linear layer
:math:`y_i = W x_i + b` have the input :math:`x_i` for row i, and let :math:`\ell` be
the sum of the terms. One backward pass computes :math:`\partial \ell / \partial y_i` of
all rows. The rows of term t determine its part of the gradient,

.. math::

    g_t = \sum_{i \in t} \frac{\partial \ell}{\partial y_i}\, x_i^\top
    \;\text{ for } W, \qquad
    g_t = \sum_{i \in t} \frac{\partial \ell}{\partial y_i} \;\text{ for } b .

The cost is about that of the gradient of :math:`\ell` alone: these products replace one
over all rows. With a backward pass for each term all else is repeated.

The flows of sbi consist of linear layers, masked or not, and of LU-decomposed ones.
The outputs of layers other than linear ones are computed again from the same inputs,
and differentiated by themselves. Networks with parameters elsewhere, and networks whose
rows interact (e.g. by batch normalization) need a backward pass for each term.
`LayerGradients.of` finds the former. The latter are found at the first step, which
compares both ways.

Reference of the products: Goodfellow (2015), *Efficient per-example gradient
computations*, arXiv:1510.01799.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nflows.transforms.lu import LULinear
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import Conv1d, Conv2d, Conv3d, LayerNorm, Linear, Module, Parameter
from torch.nn.modules.module import register_module_forward_hook

from sbi_multilevel.losses.gradients import flat_gradients

_ROW_BY_ROW = (LULinear, Conv1d, Conv2d, Conv3d, LayerNorm)
_TOLERANCE = 1e-3  # relative, of rounding in float32


class LayerGradients:
    """Gradients of the terms of batches whose rows are sorted by term.

    Args:
        network: The network.
        parameters: Its trained parameters, with P entries in all.
        num_terms: Number of terms T.

    Attributes:
        is_separable: Whether they are the gradients of separate backward passes; `None`
            before they were compared.
    """

    def __init__(
        self, network: Module, parameters: Sequence[Parameter], num_terms: int
    ):
        self.is_separable: bool | None = None
        self._arguments = (network, parameters, num_terms)
        self._calls: list[tuple[Module, tuple, list[GradientEdge]]] = []
        self._marks = torch.empty(0)
        self._sizes: list[int] = []
        self._members = torch.empty(0)  # a row for each term
        counts = [parameter.numel() for parameter in parameters]
        # one table for all steps, as its many views take time
        self._table = parameters[0].new_zeros(num_terms, sum(counts))
        self._mask = torch.ones_like(self._table[0])
        columns = dict(zip(parameters, self._table.split(counts, dim=1), strict=True))
        masks = dict(zip(parameters, self._mask.split(counts), strict=True))
        # views of the table: of weights by term and of the bias, of other parameters
        self._linear: dict[Module, tuple[list[Tensor], Tensor | None]] = {}
        self._others: dict[Module, dict[Parameter, Tensor]] = {}
        for module in network.modules():
            own = {p: columns[p] for p in module._parameters.values() if p in columns}
            if own and isinstance(module, Linear):
                weight, mask = module.weight, getattr(module, "mask", None)
                rows = [row.view(weight.shape) for row in own.get(weight, ())]
                self._linear[module] = rows, own.get(module.bias)
                # of autoregressive flows
                if rows and isinstance(mask, Tensor) and mask.shape == weight.shape:
                    masks[weight].copy_(mask.reshape(-1))
            elif own:
                self._others[module] = own

    def __reduce__(self) -> tuple:
        """Copies compare again: views of a table would become many tables."""
        return type(self), self._arguments

    @classmethod
    def of(
        cls, network: Module, parameters: Sequence[Parameter], num_terms: int
    ) -> LayerGradients | None:
        """The gradients of a network; `None` if it has parameters of other layers."""
        trained = set(parameters)
        owners = [m for m in network.modules() if trained & set(m._parameters.values())]
        if not owners or not all(isinstance(m, (Linear, *_ROW_BY_ROW)) for m in owners):
            return None
        return cls(network, parameters, num_terms)

    def reads(self, marks: Tensor, positions: Sequence[int]) -> bool:
        """Prepare for a batch, and tell whether its gradients can be computed.

        Args:
            marks: The term that each simulation is of, shape `(n,)`.
            positions: The mark of each term.
        """
        if self.is_separable is False:
            return False
        if torch.equal(marks, self._marks):  # as in all batches but the first
            return True
        sizes = torch.stack([(marks == position).sum() for position in positions])
        expected = torch.tensor(positions, device=marks.device)
        if not torch.equal(marks, expected.repeat_interleave(sizes)):
            return False
        self._marks, self._sizes = marks, sizes.tolist()
        self._members = (marks == expected[:, None]).to(self._table)
        return True

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Keep inputs and outputs of the layers of a forward pass."""
        self._calls = []

        def keep(module: Module, inputs: tuple, output: Any) -> None:
            if module in self._linear or module in self._others:
                # the edges of now, as some flows change outputs of layers in place
                edges = [get_gradient_edge(part) for part in _tensors(output)]
                self._calls.append((module, inputs, edges))

        handle = register_module_forward_hook(keep)  # one, as they take time
        try:
            yield
        except BaseException:
            self._calls = []
            raise
        finally:
            handle.remove()

    def __call__(
        self, values: Sequence[Tensor], parameters: Sequence[Parameter]
    ) -> Tensor:
        """Gradient of each term, as `flat_gradients`; the first call compares both.

        Args:
            values: T scalars, computed in the last `watch`.
            parameters: The trained parameters.

        Returns:
            Gradients, shape `(T, P)`; the next call overwrites them.
        """
        if not self._calls:
            return flat_gradients(values, parameters)
        if self.is_separable:
            return self._by_layer(values)
        try:
            found = self._by_layer(values, keep_graph=True)
        except (IndexError, RuntimeError, TypeError):  # e.g. outputs without rows
            self.is_separable = False
            return flat_gradients(values, parameters)
        gradients = flat_gradients(values, parameters)
        error = (found - gradients).norm(dim=1)
        close = error <= _TOLERANCE * gradients.norm(dim=1)
        if gradients.isfinite().all():
            self.is_separable = bool(close.all())
        return gradients

    def _by_layer(self, values: Sequence[Tensor], keep_graph: bool = False) -> Tensor:
        """The gradients, of one pass through the graph."""
        calls, self._calls = self._calls, []
        edges = [edge for *_, of_call in calls for edge in of_call]
        total = torch.stack(list(values)).sum()
        found = torch.autograd.grad(
            total, edges, retain_graph=keep_graph, allow_unused=True
        )
        slopes = iter(found)
        self._table.zero_()
        repeated: list[tuple[Tensor, Tensor]] = []
        for module, inputs, of_call in calls:
            own = [next(slopes) for _ in of_call]
            if module in self._others:
                detached = [v.detach() if isinstance(v, Tensor) else v for v in inputs]
                outputs = _tensors(module.forward(*detached))
                repeated += zip(outputs, own, strict=True)
            elif own and own[0] is not None:
                self._add_linear(module, inputs[0].detach(), own[0])
        used = [(output, slope) for output, slope in repeated if slope is not None]
        if used:
            self._add_repeated(used)
        return self._table.mul_(self._mask)

    def _add_linear(self, layer: Module, inputs: Tensor, slopes: Tensor) -> None:
        """Add the products of a linear layer."""
        weights, bias = self._linear[layer]
        slopes = slopes.reshape(-1, slopes.shape[-1])
        rows = inputs.reshape(-1, inputs.shape[-1]).split(self._sizes)
        columns = slopes.t().split(self._sizes, dim=1)
        for weight, left, right in zip(weights, columns, rows):
            weight.addmm_(left, right)
        if bias is not None:
            bias.addmm_(self._members, slopes)

    def _add_repeated(self, repeated: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add the gradients of layers whose outputs were computed again.

        Args:
            repeated: The outputs, and the gradient with respect to each.
        """
        outputs, slopes = zip(*repeated, strict=True)
        views = {p: view for own in self._others.values() for p, view in own.items()}
        for term, members in enumerate(self._members):
            parts = [
                slope * members.reshape(-1, *(1,) * (slope.dim() - 1))
                for slope in slopes
            ]
            keep = term + 1 < len(self._members)
            found = torch.autograd.grad(
                outputs, [*views], parts, retain_graph=keep, materialize_grads=True
            )
            for view, part in zip(views.values(), found, strict=True):
                view[term] = part.reshape(-1)


def _tensors(output: Any) -> list[Tensor]:
    """What a layer returns that depends on parameters."""
    parts = output if isinstance(output, tuple) else (output,)
    return [p for p in parts if isinstance(p, Tensor) and p.requires_grad]
