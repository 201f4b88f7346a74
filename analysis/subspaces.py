"""What second moments tell of X, X' and Y: spectra, subspaces, CKA, linear regression.

Every statistic here comes from one Gram matrix of Z = (1, X, X', Y, ‖X‖², ‖X'‖², ‖Y‖²) over
tokens, where X, X', Y may each be shifted by a constant. Gram matrices add up over blocks of users,
so the memory does not grow with them. All in float64 on the host.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

ROLES = ("x", "update", "y")
ENERGY = 0.9  # share of the variance that a leading subspace holds
RIDGES = 10.0 ** np.arange(-6, 1)  # multiples of the inputs' mean variance
NULL_DRAWS = 64


def gram(vectors, mask_P, shift):
    """Z'Z of the tokens where `mask_P` holds: (3D + 4, 3D + 4), float32, on the device.

    vectors: X, X', Y, each (P, D). shift: (3, D), subtracted first: near the means it keeps the
    digits that centring would cancel.
    """
    mask_Px1 = mask_P.astype(jnp.float32)[:, None]
    shifted = [(v - c) * mask_Px1 for v, c in zip(vectors, shift, strict=True)]
    norms2 = [jnp.sum(v * v, -1, keepdims=True) for v in shifted]
    z_PxE = jnp.concatenate([mask_Px1, *shifted, *norms2], -1)
    return jnp.einsum("pe,pf->ef", z_PxE, z_PxE, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """A Gram matrix of Z, float64, and the shift that was subtracted."""

    gram: np.ndarray
    shift: np.ndarray

    def __add__(self, other: "Moments") -> "Moments":
        if not np.array_equal(self.shift, other.shift):
            raise ValueError("moments about different points do not add up")
        return Moments(self.gram + other.gram, self.shift)

    @property
    def width(self) -> int:
        return self.shift.shape[1]

    @property
    def n(self) -> float:
        """Number of tokens."""
        return float(self.gram[0, 0])

    def columns(self, role: str) -> slice:
        start = 1 + ROLES.index(role) * self.width
        return slice(start, start + self.width)

    def mean(self, role: str) -> np.ndarray:
        """(D,) mean, as it was before the shift."""
        return self._mean(role) + self.shift[ROLES.index(role)]

    def covariance(self, role: str, other: str) -> np.ndarray:
        """(D, D), divided by n."""
        product = self.gram[self.columns(role), self.columns(other)]
        return product / self.n - np.outer(self._mean(role), self._mean(other))

    def variance(self, role: str) -> float:
        """Trace of the covariance; 0 where all that varies is float32's last digit."""
        if not self.n:
            return 0.0
        mean, variance = self.mean(role), float(np.trace(self.covariance(role, role)))
        return variance if variance > 1e-12 * (mean @ mean) else 0.0

    def hsic(self, role: str, other: str) -> float:
        """Unbiased linear HSIC (Song et al. 2012, Eq. 5), a U-statistic over the tokens.

        With K = XXᵀ, L = YYᵀ, their diagonals set to 0, it needs n×n sums that the norms in Z
        provide: 1ᵀK1, 1ᵀKL1, tr KL. A shift changes nothing. Needs more than 3 tokens.
        """
        n, g = self.n, self.gram
        if n <= 3:
            return math.nan
        x, y = self.columns(role), self.columns(other)
        k, m = (-len(ROLES) + ROLES.index(r) for r in (role, other))  # columns of the norms
        sum_x, sum_y, diagonals = g[0, x], g[0, y], g[k, m]
        trace = np.sum(g[x, y] ** 2) - diagonals
        all_k, all_l = sum_x @ sum_x - g[0, k], sum_y @ sum_y - g[0, m]
        both = sum_x @ g[x, y] @ sum_y - sum_x @ g[x, m] - g[k, y] @ sum_y + diagonals
        total = trace + all_k * all_l / ((n - 1) * (n - 2)) - 2 / (n - 2) * both
        return float(total / (n * (n - 3)))

    def _mean(self, role):
        return self.gram[0, self.columns(role)] / self.n


def statistics(parts: dict[str, Moments], suffix: str = "") -> dict[str, float]:
    """CKA with Y and the shares of X' explained. `parts`: fit, choose and test users.

    cka_update_y, cka_x_y: see `cka`. r2_y, r2_xy: see `explained`. suffix: which Y this is.
    """
    whole = sum_of(parts)
    found = {"cka_update_y": cka(whole, "update", "y"), "cka_x_y": cka(whole, "x", "y")}
    found |= {"r2_y": explained(parts, ("y",)), "r2_xy": explained(parts, ("x", "y"))}
    return {f"{name}{suffix}": value for name, value in found.items()}


def own_statistics(parts: dict[str, Moments]) -> dict[str, float]:
    """What X and X' tell without Y: CKA, R², spectra, the angles between their subspaces."""
    whole = sum_of(parts)
    out = {"cka_x_update": cka(whole, "x", "update"), "r2_x": explained(parts, ("x",))}
    spectra = {role: spectrum(whole, role) for role in ("x", "update")}
    for role, (shares, _) in spectra.items():
        out[f"participation_{role}"] = participation(shares)
        out[f"rank90_{role}"] = leading(shares)
        out[f"mean_share_{role}"] = mean_share(whole, role)
        out |= {f"spectrum_{role}/{i:04d}": float(s) for i, s in enumerate(shares, 1)}
    return out | subspace_statistics(spectra["x"], spectra["update"])


def sum_of(parts: dict[str, Moments]) -> Moments:
    return functools.reduce(Moments.__add__, parts.values())


def cka(moments: Moments, role: str, other: str) -> float:
    """Linear centred kernel alignment, HSIC(a, b) / √(HSIC(a, a) HSIC(b, b)), from unbiased HSIC.

    0 for independent vectors at any number of tokens (it can be slightly negative), 1 when one is
    the other rotated, scaled and shifted. nan when one is constant.
    """
    if not moments.variance(role) * moments.variance(other):
        return math.nan
    own = moments.hsic(role, role) * moments.hsic(other, other)
    return moments.hsic(role, other) / math.sqrt(own) if own > 0 else math.nan


def mean_share(moments: Moments, role: str) -> float:
    """‖mean‖² / mean ‖·‖²: the share of the energy that all tokens have in common."""
    if not moments.n:
        return math.nan
    energy = moments.mean(role) @ moments.mean(role)
    total = energy + moments.variance(role)
    return float(energy / total) if total else math.nan


def spectrum(moments: Moments, role: str) -> tuple[np.ndarray, np.ndarray]:
    """(shares (D,), directions (D, D)) of the centred variance, largest first.

    Shares sum to 1; directions are columns. All nan when nothing varies.
    """
    if not moments.variance(role):
        return np.full(moments.width, math.nan), np.full((moments.width,) * 2, math.nan)
    values, directions = np.linalg.eigh(moments.covariance(role, role))
    values = np.maximum(values[::-1], 0.0)
    return values / values.sum(), directions[:, ::-1]


def participation(shares: np.ndarray) -> float:
    """(Σλ)² / Σλ²: 1 for one direction, D when all are alike. An effective rank."""
    return float(1 / np.sum(shares**2))


def leading(shares: np.ndarray) -> float:
    """The smallest number of directions that hold `ENERGY` of the variance."""
    if np.isnan(shares).any():
        return math.nan
    return float(np.searchsorted(np.cumsum(shares), ENERGY * (1 - 1e-12)) + 1)


def subspace_statistics(x, update) -> dict[str, float]:
    """Principal angles between the leading subspaces of X and X', each with 90 % of its variance.

    subspace_cos: mean of the min(k, k') cosines; subspace_cos2: mean of their squares;
    subspace_cos_max: the largest. *_null: their expectation for random subspaces of these sizes.
    """
    sizes = [leading(shares) for shares, _ in (x, update)]
    found = null = (math.nan,) * 3
    if not any(map(math.isnan, sizes)):
        k, m = map(int, sizes)
        cosines = principal_cosines(x[1][:, :k], update[1][:, :m])
        found = (cosines.mean(), np.mean(cosines**2), cosines.max())
        null = random_subspaces(len(x[0]), k, m)
    names = ("subspace_cos", "subspace_cos2", "subspace_cos_max")
    names += tuple(f"{name}_null" for name in names)
    return {name: float(value) for name, value in zip(names, (*found, *null), strict=True)}


def principal_cosines(a_Dxk: np.ndarray, b_Dxm: np.ndarray) -> np.ndarray:
    """Cosines of the min(k, m) principal angles between the spans of orthonormal columns."""
    return np.clip(np.linalg.svd(a_Dxk.T @ b_Dxm, compute_uv=False), 0.0, 1.0)


@functools.lru_cache
def random_subspaces(width: int, k: int, m: int) -> tuple[float, float, float]:
    """Expected mean, mean square and maximum of the cosines for random subspaces.

    The mean square is max(k, m) / D exactly; the others are means of 64 fixed draws.
    """
    rng = np.random.default_rng(0)
    draws = [
        principal_cosines(*(np.linalg.qr(rng.normal(size=(width, size)))[0] for size in (k, m)))
        for _ in range(NULL_DRAWS)
    ]
    return float(np.mean(draws)), max(k, m) / width, float(np.max(draws, 1).mean())


def explained(parts: dict[str, Moments], inputs: tuple[str, ...]) -> float:
    """Share of the variance of X' that a ridge regression on `inputs` explains on other users, R².

    The regression has an intercept; every input is scaled to mean variance 1, so that neither the
    scale nor a rotation of X or Y matters. The ridge is the one of `RIDGES` that, fitted to the
    `fit` users, does best on the `choose` users; with it both are fitted, and R² is that of the
    `test` users, about their own mean. Below 0: worse than that mean. nan when X' does not vary.
    """
    if not all(part.variance("update") for part in parts.values()):
        return math.nan
    fit = ridge(parts["fit"], inputs)
    best = max(RIDGES, key=lambda size: r2(parts["choose"], *fit(size), inputs))
    return r2(parts["test"], *ridge(parts["fit"] + parts["choose"], inputs)(best), inputs)


def ridge(moments: Moments, inputs: tuple[str, ...]):
    """Function size -> (weights (p, D), intercept (D,)) of X' on `inputs`, about the shift."""
    variances = np.array([moments.variance(role) for role in inputs]) / moments.width
    # Each input is brought to mean variance 1; a constant stays as it is.
    scale = np.repeat(np.where(variances > 0, variances, 1.0) ** -0.5, moments.width)
    between = np.block([[moments.covariance(a, b) for b in inputs] for a in inputs])
    values, directions = np.linalg.eigh(between * np.outer(scale, scale))
    with_update = np.vstack([moments.covariance(a, "update") for a in inputs]) * scale[:, None]
    # Rounding in float32 blocks can push a variance of 0 below it.
    values, turned = np.maximum(values, 0.0), directions.T @ with_update
    mean = np.concatenate([moments._mean(role) for role in inputs])

    def of_size(size):
        weights = scale[:, None] * (directions @ (turned / (values + size)[:, None]))
        return weights, moments._mean("update") - mean @ weights

    return of_size


def r2(moments: Moments, weights, intercept, inputs: tuple[str, ...]) -> float:
    """1 - ‖X' - prediction‖² / ‖X' - mean‖² over all tokens and units of `moments`."""
    residual = np.zeros((moments.width, len(moments.gram)))  # as a map of Z
    residual[:, 0] = -intercept
    for i, role in enumerate(inputs):
        rows = slice(i * moments.width, (i + 1) * moments.width)
        residual[:, moments.columns(role)] = -weights[rows].T
    residual[:, moments.columns("update")] += np.eye(moments.width)
    error = np.einsum("de,ef,df->", residual, moments.gram, residual, optimize=True)
    return float(1 - error / moments.n / moments.variance("update"))
