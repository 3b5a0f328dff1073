"""Re-express the points of an episode in the space they span: fewer dimensions, the same geometry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fewshot.core.errors import FewshotError
from fewshot.episodes.types import Episodes


@torch.no_grad()
def span_coordinates(x: Tensor) -> Tensor:
    """x [E, n, D] -> y [E, n, min(n, D)] with y_i.y_j = x_i.x_j to the precision of the dtype of x.

    n points lie in a subspace of at most n dimensions, so an algorithm that depends on inner products alone (distances,
    means, nearest prototypes) gives the same answer on y. Row i of y uses its first i + 1 coordinates only. For D <= n
    x itself is returned. Gradients do not pass.

    The coordinates are the Cholesky factor of the Gram matrix of the unit rows, computed in float64 and scaled back by
    the row norms: faster than a QR factorisation of x. The Gram matrix of dependent points (duplicates,
    more points than the rank) is singular, so its diagonal is raised by n * 2e-15: squared norms grow by that relative
    amount, all other inner products are kept, and an all-zero row stays zero.
    """
    points, dim = x.shape[-2:]
    if dim <= points:
        return x
    wide = x.double()
    gram = wide @ wide.transpose(-1, -2)  # [E, n, n]
    norms = gram.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1)  # [E, n, 1]
    inverse = norms.reciprocal().where(norms > 0, 0)
    gram *= inverse * inverse.transpose(-1, -2)
    gram.diagonal(dim1=-2, dim2=-1).fill_(1 + 10 * points * torch.finfo(torch.float64).eps)
    return (torch.linalg.cholesky(gram) * norms).to(x.dtype)


def to_span(episodes: Episodes, with_text: bool = False) -> Episodes:
    """The episodes with support, query (and unlabelled) expressed in the span of these points, see `span_coordinates`.

    The new feature dimension is min(S + Q (+ U), D). Texts do not lie in that span: without `with_text` they are dropped,
    with it they are among the points (D is then that of the features, or FewshotError). Elementwise operations (powers,
    standardisation over channels, Adam) are not rotation invariant: apply them before, or do without the span.
    """
    given = {"support": episodes.support, "query": episodes.query, "unlabelled": episodes.unlabelled}
    if with_text and episodes.text is not None:
        dim, prompts = episodes.support.shape[-1], episodes.prompts
        if dim != episodes.text.shape[-1]:
            raise FewshotError(f"features of {dim} and texts of {episodes.text.shape[-1]} channels have no span in common; "
                               "leave the transform span out")
        given |= {"text": episodes.text, "prompts": None if prompts is None else prompts.flatten(1, 2)}
    parts = {name: values for name, values in given.items() if values is not None}
    sizes = [values.shape[1] for values in parts.values()]
    if episodes.support.shape[-1] <= sum(sizes):
        return episodes
    coordinates = span_coordinates(torch.cat(list(parts.values()), dim=1)).split(sizes, dim=1)
    found: dict[str, Any] = dict(zip(parts, coordinates, strict=True))
    if "prompts" in found:
        found["prompts"] = found["prompts"].unflatten(1, (episodes.ways, -1))
    return episodes.replace(**{"text": None, "prompts": None, "projection": None, **found})


@torch.no_grad()
def to_support_span(episodes: Episodes) -> Episodes:
    """The episodes relative to the mean of their support and expressed in the span of the support, min(S, D) dimensions.

    Queries are projected onto that span, which is all that a linear classifier fitted to the support sees of them. `text`
    and `unlabelled` are dropped. Gradients do not pass.
    """
    mean = episodes.support.mean(1, keepdim=True)
    support = episodes.support - mean
    coordinates = span_coordinates(support)  # [E, S, R]
    if coordinates.shape[-1] == support.shape[-1]:
        query = episodes.query - mean
    else:
        # support = coordinates @ basis with orthonormal rows, hence query @ basis^T = query @ support^T @ coordinates^-T.
        # The mean is taken off the few products instead of the queries.
        products = support @ episodes.query.transpose(1, 2) - support @ mean.transpose(1, 2)  # [E, S, Q]
        # A point at the mean has a zero row and column: any pivot leaves its coordinate of the queries 0.
        pivots = coordinates.diagonal(dim1=1, dim2=2)
        triangle = coordinates + torch.diag_embed((pivots == 0).to(coordinates.dtype))
        query = torch.linalg.solve_triangular(triangle, products, upper=False).transpose(1, 2)
    return Episodes.trusted(support=coordinates, support_labels=episodes.support_labels, query=query, ways=episodes.ways)


@torch.no_grad()
def principal_coordinates(x: Tensor) -> Tensor:
    """x [E, n, D] -> y [E, n, min(n, D)]: the coordinates along the eigenvectors of x^T x, largest eigenvalue first.

    Inner products are kept as in `span_coordinates`, but the axes do not depend on the order of the points, which
    matters to algorithms that treat coordinates one by one. The sign of an axis is arbitrary. Gradients do not pass.
    """
    wide = x.double()
    if x.shape[-1] <= x.shape[-2]:
        axes = torch.linalg.eigh(wide.transpose(-1, -2) @ wide).eigenvectors
        return (wide @ axes).flip(-1).to(x.dtype)
    values, vectors = torch.linalg.eigh(wide @ wide.transpose(-1, -2))
    return (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)).flip(-1).to(x.dtype)
