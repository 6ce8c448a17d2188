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


class _Layer:
    """The gradients of one layer, as views of the table of all.

    Args:
        module: The layer.
        columns: By its trained parameters, the columns of the table, shape `(T, p)`.
    """

    def __init__(self, module: Module, columns: dict[str, Tensor]):
        self.columns, self.is_linear = columns, isinstance(module, Linear)
        self.parameters = [getattr(module, name) for name in columns]
        self.bias = columns.get("bias")
        self.weights = None
        if self.is_linear and "weight" in columns:
            shape = module.weight.shape
            self.weights = [row.view(shape) for row in columns["weight"]]


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
        like = parameters[0].detach()
        self._members = like.new_zeros(num_terms, 0)  # a row for each term
        counts = [parameter.numel() for parameter in parameters]
        # one table for all steps, as its many views take time
        self._table = like.new_zeros(num_terms, sum(counts))
        self._mask = torch.ones_like(self._table[0])
        columns = dict(zip(parameters, self._table.split(counts, dim=1), strict=True))
        masks = dict(zip(parameters, self._mask.split(counts), strict=True))
        self._layers: dict[Module, _Layer] = {}
        for module in network.modules():
            own = {k: p for k, p in module._parameters.items() if p in columns}
            if own:
                views = {name: columns[p] for name, p in own.items()}
                self._layers[module] = _Layer(module, views)
            weight, mask = own.get("weight"), getattr(module, "mask", None)
            if weight is None or not isinstance(mask, Tensor):
                continue
            if mask.shape == weight.shape:  # of autoregressive flows
                masks[weight].copy_(mask.reshape(-1))

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
            if module in self._layers:
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
        slopes = iter(
            torch.autograd.grad(
                total, edges, retain_graph=keep_graph, allow_unused=True
            )
        )
        self._table.zero_()
        repeated: list[tuple[Tensor, Tensor]] = []
        for module, inputs, of_call in calls:
            layer, own = self._layers[module], [next(slopes) for _ in of_call]
            if not layer.is_linear:
                outputs = _tensors(module.forward(*map(_detached, inputs)))
                repeated += zip(outputs, own, strict=True)
            elif own and own[0] is not None:
                self._add_linear(layer, inputs[0].detach(), own[0])
        used = [(output, slope) for output, slope in repeated if slope is not None]
        if used:
            self._add_repeated(used)
        return self._table.mul_(self._mask)

    def _add_linear(self, layer: _Layer, inputs: Tensor, slopes: Tensor) -> None:
        """Add the products of a linear layer."""
        slopes = slopes.reshape(-1, slopes.shape[-1])
        if layer.weights is not None:
            rows = inputs.reshape(-1, inputs.shape[-1]).split(self._sizes)
            columns = slopes.t().split(self._sizes, dim=1)
            for weight, left, right in zip(layer.weights, columns, rows, strict=True):
                weight.addmm_(left, right)
        if layer.bias is not None:
            layer.bias.addmm_(self._members, slopes)

    def _add_repeated(self, repeated: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add the gradients of layers whose outputs were computed again.

        Args:
            repeated: The outputs, and the gradient with respect to each.
        """
        outputs, slopes = zip(*repeated, strict=True)
        layers = [layer for layer in self._layers.values() if not layer.is_linear]
        parameters = [p for layer in layers for p in layer.parameters]
        columns = [view for layer in layers for view in layer.columns.values()]
        for term, members in enumerate(self._members):
            parts = [
                slope * members.reshape(-1, *(1,) * (slope.dim() - 1))
                for slope in slopes
            ]
            found = torch.autograd.grad(
                outputs,
                parameters,
                parts,
                retain_graph=term + 1 < len(self._members),
                materialize_grads=True,
            )
            for view, part in zip(columns, found, strict=True):
                view[term] = part.reshape(-1)


def _tensors(output: Any) -> list[Tensor]:
    """What a layer returns that depends on parameters."""
    parts = output if isinstance(output, tuple) else (output,)
    return [p for p in parts if isinstance(p, Tensor) and p.requires_grad]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
