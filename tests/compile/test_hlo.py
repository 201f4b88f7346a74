"""What is read off HLO texts: of three compilers, and of small texts with answers by hand."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from oa_jax.compile import hlo
from oa_jax.compile.hlo import Program

HERE = pathlib.Path(__file__).parent
# A turn on one of four devices: two sequences of 16 rows times 128 x 128, then 16 x 16 scores each.
TURN_FLOPS = 2 * 2 * 16 * 128 * 128 + 2 * 2 * 16 * 16 * 128


@pytest.fixture(scope="module", params=["v5e", "h100", "cpu"])
def text(request):
    """cpu_program.py compiled for four devices, by the compilers of TPU and GPU, and here."""
    if request.param != "cpu":
        return (HERE / f"{request.param}.hlo").read_text()
    command = [sys.executable, str(HERE / "cpu_program.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_loop_counts_as_often_as_it_turns(text):
    program = Program(text)
    assert program.cost().unknown_loops == 0
    assert program.cost().flops == 7 * TURN_FLOPS
    assert program.loop(7).flops == TURN_FLOPS
    assert program.loop(6) is None


def test_its_collective_too(text):
    times, size = Program(text).cost().collectives["all-reduce"]
    one_times, one_size = Program(text).loop(7).collectives["all-reduce"]
    assert (times, size) == (7, 7 * one_size) and one_times == 1


def test_a_loop_of_unknown_length_is_counted_once_and_told():
    text = (HERE / "v5e.hlo").read_text()
    cost = Program(text.replace("direction=LT", "direction=NE")).cost()
    assert (cost.unknown_loops, cost.flops) == (1, TURN_FLOPS)


def test_a_loop_that_never_turns_costs_nothing():
    text = (HERE / "h100.hlo").read_text()
    cost = Program(text.replace('{"n":"7"}', '{"n":"0"}')).cost()
    assert (cost.flops, cost.unknown_loops) == (0, 0)


def test_bytes_by_place_are_all_of_them(text):
    for cost in (Program(text).cost(), Program(text).loop(7)):
        assert sum(cost.places.values()) == cost.traffic > 0


def test_places_are_those_of_the_model():
    path = "jit(program)/vmap()/while/body/closed_call"
    names = {
        f"{path}/loss/jvp(ABXI)/ffn/up/dot_general": "ffn up",
        f"{path}/loss/transpose(jvp(ABXI))/gca_0_B/gca_0_B.fused/attention/attention.attend/exp": (
            "gca attention, backward"
        ),
        f"{path}/loss/jvp(SASRec)/SASRec.run/block_x_1/Dropout_0/cond/branch_0_fun/add": (
            "block dropout"
        ),
        f"{path}/loss/jvp()/vmap(jit(a/b))/reduce_sum": "loss",
        f"{path}/optimizer/mul": "optimizer",
        "jit(program)/add": "elsewhere",
        "": "elsewhere",
    }
    assert {name: hlo.place_of(name) for name in names} == names


def test_what_is_no_module():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        Program("HloModule nothing\n")


# --- memory traffic, by hand -------------------------------------------------------------------

TABLE, ROWS, IDS = 1000 * 64 * 4, 8 * 64 * 4, 8 * 4
PARAMETERS = """
  %table = f32[1000,64]{1,0} parameter(0)
  %ids = s32[8]{0} parameter(1)
  %rows = f32[8,64]{1,0} parameter(2)
  %at = s32[] parameter(3)
"""
INSTRUCTIONS = {
    "f32[8,64]{1,0} gather(%table, %ids), slice_sizes={1,64}": ROWS + IDS + ROWS,
    "f32[8,64]{1,0} dynamic-slice(%table, %at, %at), dynamic_slice_sizes={8,64}": 2 * ROWS + 4,
    "f32[1000,64]{1,0} dynamic-update-slice(%table, %rows, %at, %at)": 2 * ROWS + 4,
    "f32[1000,64]{1,0} scatter(%table, %ids, %rows), to_apply=%add": 3 * ROWS + IDS,
    "f32[1000,64]{1,0} negate(%table)": 2 * TABLE,
    "f32[1000,64]{1,0} add(%table, %table)": 2 * TABLE,
    "f32[1000,64]{1,0:T(8,128)S(1)} negate(%table)": TABLE,  # into a TPU's vector memory
    "bf16[1000,64]{1,0} convert(%table)": TABLE + TABLE // 2,
    "(f32[1000,64]{1,0:S(1)}, f32[1000,64]{1,0}, u32[]{:S(2)}) copy-start(%table)": TABLE,
    "(f32[1000,64]{1,0}, f32[1000,64]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%table)": 2 * TABLE,
    "f32[1000,64]{1,0} copy-done(%table)": 0,
    # A part that is fetched beside other work: read and written once, into vector memory read.
    "((f32[1000,64]{1,0}), f32[8,64]{1,0:S(1)}, u32[]{:S(2)}) slice-start(%table), "
    "slice={[0:8], [0:64]}": ROWS,
    "((f32[1000,64]{1,0}), f32[8,64]{1,0}, u32[]{:S(2)}) slice-start(%table), "
    "slice={[0:8], [0:64]}": 2 * ROWS,
    "f32[8,64]{1,0} slice-done(%rows)": 0,
    "f32[64000]{0} bitcast(%table)": 0,
    "(f32[1000,64]{1,0}, s32[8]{0}) tuple(%table, %ids)": 0,
}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("u32[5,524288,2]{0,2,1:T(2,128)}", 128 * 524288 * 2 * 4),  # seeds along the lanes
        ("f32[5,3]{1,0:T(8,128)}", 8 * 128 * 4),
        ("bf16[20,300]{1,0:T(8,128)(2,1)}", 24 * 384 * 2),
        ("f32[7,20,300]{2,1,0:T(8,128)}", 7 * 24 * 384 * 4),
        ("f32[20,300]{0,1:T(8,128)}", 128 * 304 * 4),
        ("f32[1000]{0:T(1024)}", 4096),
        ("s32[]{:T(128)}", 4),
        ("f32[20,300]{1,0}", 20 * 300 * 4),
    ],
)
def test_a_tile_is_filled_up(shape, size):
    text = (
        f"HloModule m\n\nENTRY %main (x: f32[]) -> f32[] {{\n  ROOT %x = {shape} parameter(0)\n}}\n"
    )
    (scope,) = Program(text).computations.values()
    assert scope["x"].size == scope["x"].traffic == size


def test_what_the_compiler_expects_is_added_up():
    kernel = 'f32[1000,64]{1,0} negate(%table), backend_config={"estimated_cycles":"1826"}'
    cost = Program(module(kernel)).cost()
    assert (cost.cycles, cost.unestimated) == (1826, 0)
    told = r'\1, backend_config={"estimated_cycles":"10"}'
    loop = Program(re.sub(r"( fusion\(.*)", told, (HERE / "v5e.hlo").read_text()))
    assert loop.loop(7).cycles >= 10 and loop.cost().cycles >= 7 * loop.loop(7).cycles
    silent = Program(module("f32[8,64]{1,0} gather(%table, %ids), slice_sizes={1,64}")).cost()
    assert (silent.cycles, silent.unestimated) == (0, 1)


def module(instruction, fused=False):
    """A module of one instruction, which stands alone or in a fusion."""
    body = f"{PARAMETERS}  ROOT %out = {instruction}\n}}\n"
    head = "(table: f32[1000,64], ids: s32[8], rows: f32[8,64], at: s32[]) -> f32[] {"
    if not fused:
        return f"HloModule m\n\nENTRY %main {head}{body}"
    shape = instruction[: instruction.index(")") + 1] if instruction[0] == "(" else ""
    shape = shape or instruction.split(" ")[0]
    call = f"{shape} fusion(%table, %ids, %rows, %at), kind=kLoop, calls=%inside"
    inside, main = f"%inside {head}{body}", f"ENTRY %main {head}{PARAMETERS}  ROOT %f = {call}\n}}"
    return f"HloModule m\n\n{inside}\n{main}\n"


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_traffic_by_hand(instruction):
    assert Program(module(instruction)).cost().traffic == INSTRUCTIONS[instruction]


@pytest.mark.parametrize("instruction", list(INSTRUCTIONS)[:8])
def test_a_fusion_moves_what_its_parts_read_and_write(instruction):
    assert Program(module(instruction, fused=True)).cost().traffic == INSTRUCTIONS[instruction]


def test_a_part_is_the_whole_where_another_use_takes_it_all():
    both = "f32[8,64]{1,0} gather(%table, %ids), slice_sizes={1,64}"
    text = module(both, fused=True)
    whole = text.replace(
        "ROOT %out", "%all = f32[] reduce(%table, %at), to_apply=%add\n  ROOT %out"
    )
    assert Program(whole).cost().traffic == TABLE + 4 + IDS + ROWS


# --- products and collectives, by hand -----------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "flops"),
    [
        ("f32[8,8]{1,0} dot(%rows, %rows), lhs_contracting_dims={1}", 2 * 8 * 8 * 64),
        ("f32[8,8]{1,0} convolution(%rows, %rows), dim_labels=bf_oi->bf", 2 * 8 * 8 * 64),
        (
            "(f32[8,8]{1,0}, s8[4]{0}) custom-call(%rows, %rows)"
            ', custom_call_target="__cublas$gemm"'
            ', backend_config={"lhs_contracting_dimensions":["1"]}',
            2 * 8 * 8 * 64,
        ),
        ('f32[8]{0} custom-call(%rows), custom_call_target="TopK"', 0),
        ("f32[8,64]{1,0} add(%rows, %rows)", 0),
    ],
)
def test_flops_of_a_product(call, flops):
    assert Program(module(call)).cost().flops == flops


def test_places_that_meet_are_counted_as_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, kernel, places = (int(n) for n in rng.integers(1, 7, 3))
        low, stride, dilate, kernel_dilate = (int(n) for n in rng.integers(0, 4, 4))
        steps = (max(stride, 1), max(dilate, 1), max(kernel_dilate, 1))
        brute = 0
        for k in range(kernel):
            for o in range(places):
                at = o * steps[0] + k * steps[2] - low
                brute += 0 <= at <= (size - 1) * steps[1] and at % steps[1] == 0
        assert hlo._meeting(size, kernel, places, low, *steps) == brute


@pytest.mark.parametrize(
    ("call", "kind", "size"),
    [
        ("f32[8,64]{1,0} all-reduce(%rows), to_apply=%add", "all-reduce", ROWS),
        ("f32[8,64]{1,0} all-reduce-start(%rows), to_apply=%add", "all-reduce", ROWS),
        ("(f32[8,64]{1,0}, s32[8]{0}) all-reduce(%rows, %ids)", "all-reduce", ROWS + IDS),
        ("f32[32,64]{1,0} all-gather(%rows), dimensions={0}", "all-gather", 4 * ROWS),
        ("(f32[8,64]{1,0}, f32[32,64]{1,0}) all-gather-start(%rows)", "all-gather", 4 * ROWS),
        ("f32[2,64]{1,0} reduce-scatter(%rows)", "reduce-scatter", ROWS // 4),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_collectives_and_their_sizes(call, kind, size, fused):
    assert Program(module(call, fused)).cost().collectives == {kind: (1, size)}


GATHER = "all-gather(%part), channel_id=1, dimensions={0}, frontend_attributes={chain_id="
CHAINED = f"""HloModule m

%start (part: f32[8,64]) -> (f32[8,64], f32[32,64], u32[]) {{
  %part = f32[8,64]{{1,0}} parameter(0)
  %gather.1 = f32[32,64]{{1,0}} {GATHER}"0"}}
  ROOT %call = (f32[8,64]{{1,0}}, f32[32,64]{{1,0}}, u32[]{{:S(2)}}) custom-call(%gather.1), \
custom_call_target="AsyncCollectiveStart"
}}

%beside (part: f32[8,64], whole: f32[32,64], table: f32[1000,64]) -> (f32[1000,64], f32[32,64]) {{
  %part = f32[8,64]{{1,0}} parameter(0)
  %whole = f32[32,64]{{1,0}} parameter(1)
  %table = f32[1000,64]{{1,0}} parameter(2)
  %negative = f32[1000,64]{{1,0}} negate(%table)
  %gather.2 = f32[32,64]{{1,0}} {GATHER}"0"}}
  ROOT %all = (f32[1000,64]{{1,0}}, f32[8,64]{{1,0}}, f32[32,64]{{1,0}}, f32[32,64]{{1,0}}) \
tuple(%negative, %part, %whole, %gather.2)
}}

%end (part: f32[8,64], whole: f32[32,64]) -> f32[32,64] {{
  %part = f32[8,64]{{1,0}} parameter(0)
  %whole = f32[32,64]{{1,0}} parameter(1)
  %gather.3 = f32[32,64]{{1,0}} {GATHER}"0"}}
  ROOT %call = f32[32,64]{{1,0}} custom-call(%part, %whole, %gather.3), \
custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (rows: f32[8,64], table: f32[1000,64]) -> f32[32,64] {{
  %rows = f32[8,64]{{1,0}} parameter(0)
  %table = f32[1000,64]{{1,0}} parameter(1)
  %s = (f32[8,64]{{1,0}}, f32[32,64]{{1,0}}, u32[]{{:S(2)}}) \
fusion(%rows), kind=kCustom, calls=%start
  %whole = f32[32,64]{{1,0}} get-tuple-element(%s), index=1
  %b = (f32[1000,64]{{1,0}}, f32[8,64]{{1,0}}, f32[32,64]{{1,0}}, f32[32,64]{{1,0}}) \
fusion(%rows, %whole, %table), kind=kOutput, calls=%beside
  %more = f32[32,64]{{1,0}} get-tuple-element(%b), index=3
  ROOT %d = f32[32,64]{{1,0}} fusion(%rows, %more), kind=kCustom, calls=%end
}}
"""


def test_a_collective_that_runs_beside_other_work_is_one():
    cost = Program(CHAINED).cost()
    assert cost.collectives == {"all-gather": (1, 4 * ROWS)}
    assert cost.traffic == ROWS + 4 * ROWS + 2 * TABLE
    twice = CHAINED.replace("fusion(%rows, %more), kind=kCustom, calls=%end", "negate(%more)")
    assert Program(twice).cost().traffic == ROWS + 4 * ROWS + 2 * TABLE + 8 * ROWS


def test_no_collective_where_there_is_none():
    assert Program(module("f32[8,64]{1,0} add(%rows, %rows)")).cost().collectives == {}
