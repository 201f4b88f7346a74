"""A fusion of one's own is one class and one line; the configuration's group costs no JAX."""

import subprocess
import sys

import jax
import pytest

import oa_jax as oa
from oa_jax.backbones import known as backbones
from oa_jax.backbones.sasrec import model as sasrec
from oa_jax.errors import UserError
from oa_jax.nn import known
from oa_jax.nn.fusion import Fusion, Taken, make
from oa_jax.nn.gca import GatedCrossAttention
from oa_jax.nn.known import GCAConfig
from tests.backbones.abxi import _batches as abxi
from tests.backbones.cdsrnp import _batches as cdsrnp
from tests.backbones.llm4cdsr import _batches as llm4cdsr


class Adding(Fusion):
    """X + W (mean of Y): a token takes the mean of what it may see."""

    causal: bool = False
    bias: float = 0.5

    pool: str = "mean"

    def take(self, query, source, view):
        y, weights = self.one_y(query, source, view)
        return Taken(y @ self.param("w", self.initial.weight, (8, 8)) + self.bias, weights)


ITEMS, N_ITEMS = llm4cdsr.histories(llm4cdsr.PATTERNS)
BACKBONES = {
    "abxi": lambda gca: (abxi.backbone(gca), abxi.evaluation_batch()),
    "llm4cdsr": lambda gca: (
        llm4cdsr.backbone(N_ITEMS, gca),
        llm4cdsr.evaluation_batch(ITEMS, N_ITEMS),
    ),
    "cdsrnp": lambda gca: (
        cdsrnp.backbone(N_ITEMS, gca, neural_process=False),
        cdsrnp.evaluation_rows(ITEMS, N_ITEMS),
    ),
    "sasrec": lambda gca: (
        sasrec.Backbone(N_ITEMS, sasrec.Model(d_embed=8, heads=2, length=10), GCAConfig(**gca)),
        cdsrnp.evaluation_rows(ITEMS, N_ITEMS, 10, 10),
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_fusion_of_ones_own_serves_every_backbone(name, monkeypatch):
    monkeypatch.setitem(known.FUSIONS, "adding", f"{__name__}.Adding")
    model, rows = BACKBONES[name]({"fusion": "adding", "positions": (0, 2)})
    params = jax.eval_shape(model.init, jax.random.key(0))
    net = params.get("net", params)
    modules = {f"gca_{place}_{domain}" for place in (0, 2) for domain in "AB"}
    assert {m for m in net if m.startswith("gca")} == modules
    assert all(set(net[module]) == {"w", "norm"} for module in modules)
    probes = jax.eval_shape(model.probe, params, rows)
    assert set(probes) == {"0/A", "0/B", "2/A", "2/B"}
    # The twin: the place that it doesn't take has no module.
    plain = jax.eval_shape(BACKBONES[name]({})[0].init, jax.random.key(0))
    assert not any(m.startswith("gca") for m in plain.get("net", plain))


def test_a_fusion_in_a_module_of_ones_own_needs_no_line_here():
    config = oa.config("abxi", gca="early", **{"gca.fusion": f"{__name__}.Adding"})
    assert isinstance(make(config.gca, 2), Adding)
    assert backbones.parts(config).label.startswith("abxi + Adding[0]")
    for name, said in (("os.nothing", "no attribute 'nothing'"), ("os.path", "a subclass of")):
        gca = oa.config("abxi", gca="early", **{"gca.fusion": name}).gca
        with pytest.raises(UserError, match=f"gca.fusion={name}: .*{said}"):
            make(gca, 2)
    with pytest.raises(UserError, match=r"gca.fusion=flim: expected one of gca, .* MODULE.CLASS"):
        oa.config("abxi", gca="early", **{"gca.fusion": "flim"})


def test_what_take_returns_is_checked(monkeypatch):
    monkeypatch.setattr(Adding, "take", lambda self, query, source, view: query.h_PxD)
    model, _ = BACKBONES["sasrec"]({"fusion": f"{__name__}.Adding", "positions": (0,)})
    with pytest.raises(UserError, match=r"Adding.take: found .*Tracer, expected Taken\("):
        jax.eval_shape(model.init, jax.random.key(0))


def test_fields_of_the_class_are_filled_from_the_group(monkeypatch):
    monkeypatch.setitem(known.FUSIONS, "adding", f"{__name__}.Adding")
    found = make(GCAConfig(fusion="adding", causal=True, gate_act="tanh"), 4)
    assert (type(found), found.causal, found.bias, found.heads) == (Adding, True, 0.5, 4)
    gca = make(GCAConfig(gate_act="tanh", heads=2, part_of="gated"), 4, name="gca_0_A")
    assert (type(gca), gca.gate_act, gca.heads, gca.name) == (
        GatedCrossAttention, "tanh", 2, "gca_0_A",
    )  # fmt: skip
    assert gca.part_of == "gated" and gca.gate_hidden == 4


def test_reading_the_group_costs_no_jax():
    code = "import sys; import oa_jax.nn.known; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
