"""The published values are complete, consistent, and those of the collected sources."""

import itertools
import json
import pathlib
import re

import numpy as np
import polars as pl
import pytest
from scipy import stats

from analysis import correlate, published, scaling
from analysis.output import interval, number
from analysis.phase import orders

FOLDER = pathlib.Path(published.__file__).parent
PHASE = FOLDER / "phase"


def test_tables_are_found_by_the_names_of_runs():
    table = published.table1("abxi", "beauty_elec")
    assert set(table) == {"baseline", "early", "stack"}
    assert table["stack"]["A/ndcg@10"] == (0.1846, 0.0057)
    assert published.table1("cdsrnp", "elec_phone")["baseline"]["B/ndcg@10"][0] == 0.1935
    assert published.table1("abxi", "synthetic") == {}


def test_the_rs_are_all_there():
    found = {
        (m, d): published.correlation(m, d)["r"]
        for m in ("llm4cdsr", "abxi", "cdsrnp")
        for d in "AB"
    }
    assert found == {
        **{("llm4cdsr", "A"): -0.008, ("llm4cdsr", "B"): -0.452},
        **{("abxi", "A"): -0.328, ("abxi", "B"): -0.340},
        **{("cdsrnp", "A"): 0.537, ("cdsrnp", "B"): -0.296},
    }
    assert published.correlation("toy", "A") is None


def test_every_part_says_where_it_comes_from():
    paper = published.paper()
    for name, part in paper.items():
        if name != "paper":
            assert len(part["source"]) > 30, name
    assert len(paper["table1"]["rows"]) == 15 and len(paper["ablation"]["rows"]) == 10
    assert len(paper["model_comparison"]["series"]) == 30


def test_first_points_are_table_1_but_for_the_errors_that_are_named():
    wrong = []
    for series in published.paper()["model_comparison"]["series"]:
        plain = series["dataset"].split(" (")[0].lower().replace("-", "_")
        table = published.table1(series["model"], plain)[series["variant"]]
        if abs(table[f"{series['domain']}/ndcg@10"][0] - series["points"][0][1]) > 2e-4:
            wrong.append((series["model"], series["domain"], series["variant"]))
    assert wrong == [
        ("CDSRNP", "A", "stack"),
        ("ABXI", "A", "baseline"),
        ("ABXI", "B", "baseline"),
    ]


def test_values_are_those_of_the_collected_sources(shared_file):
    tables = json.loads(shared_file("paper", "paper_tables.json").read_text())
    for mine, theirs in zip(
        published.paper()["table1"]["rows"], tables["table1"]["rows"], strict=True
    ):
        assert mine["ndcg10_B"] == [theirs["ndcg10_B"]["mean"], theirs["ndcg10_B"]["std"]]
    figures = json.loads(shared_file("paper", "paper_figures.json").read_text())
    drawn = figures["model_comparison"]["abxi_afk"]["A"]["gca_early"]
    mine = [
        series["points"]
        for series in published.paper()["model_comparison"]["series"]
        if (series["dataset"], series["domain"], series["variant"]) == ("Food-Kitch", "A", "early")
    ]
    assert mine == [drawn]


@pytest.mark.parametrize("name", ["none", "early", "stack"])
def test_summaries_of_our_own_runs_are_whole(name):
    path = "analysis/published/abxi_beauty_elec_small"
    root = published.pathlib.Path(published.__file__).parents[2]
    summary = json.loads((root / path / f"{name}.json").read_text())
    assert summary["n_seeds"] == 5 and len(summary["per_seed"]) == 5


def test_the_table_of_mybank_is_that_of_its_summaries():
    folder = FOLDER / "abxi_mybank_loan_fund_small"
    summaries = json.loads((folder / "rules.json").read_text())
    summaries += [json.loads((folder / f"{name}.json").read_text()) for name in ("none", "early")]
    of = {one["label"]: one for one in summaries}
    said = (FOLDER / "README.md").read_text().partition("## ABXI, MYbank")[2].partition("\n## ")[0]
    rows = {cells[1].strip(): cells for line in said.splitlines() if (cells := line.split("|"))[2:]}
    metrics = [
        f"test/{d}/{m}" for m in ("ndcg@10/uni999", "ndcg@10/full", "auc/uni999") for d in "AB"
    ]
    for label in ("popularity", "last-item popularity", "abxi", "abxi + GCA[0]"):
        mean, sd = of[label]["mean"], of[label]["sd"]
        spread = [f" ± {sd[m]:.4f}" if of[label]["n_seeds"] > 1 else "" for m in metrics]
        cells = [f"{mean[m]:.4f}{s}" for m, s in zip(metrics, spread, strict=True)]
        assert [cell.strip() for cell in rows[label][4:-1]] == cells
    none, early = (of[label]["mean"] for label in ("abxi", "abxi + GCA[0]"))
    for metric, cell in zip(metrics, rows["gain of GCA, 95 % interval"][4:-1], strict=True):
        gain = float(cell.split()[0].replace("−", "-"))
        assert gain == pytest.approx(early[metric] - none[metric], abs=6e-5)
    cosines = [number(early[f"best/gca/0/{d}/cos"], 2, sign=True) for d in "AB"]
    assert cosines == ["+0.09", "−0.14"] and f"raw X' is {cosines[0]} ±" in said
    root = (FOLDER.parents[1] / "README.md").read_text()
    for d, cosine in zip("AB", cosines, strict=True):
        cells = [rows[label][4 + "AB".index(d)].strip() for label in ("abxi", "abxi + GCA[0]")]
        assert f"loan-fund, {d} | `uni999` | {' | '.join(cells)} | – | {cosine} |" in root


def test_food_kitchen_is_that_of_its_summaries():
    folder, text = FOLDER / "abxi_food_kitchen_small", section("ABXI, Food-Kitchen")
    front = (FOLDER.parents[1] / "README.md").read_text()
    names = ("none", "early", "stack")
    runs = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    metrics = ("ndcg@10/uni999", "ndcg@10/full", "auc/uni999")
    keys, base = [f"test/{d}/{m}" for m in metrics for d in "AB"], runs["none"]["mean"]
    table, gains = {}, {}
    for name, run in runs.items():
        mean, sd = run["mean"], run["sd"]
        table[name] = [f"{mean[key]:.4f} ± {sd[key]:.4f}" for key in keys]
        lead = f"{run['label']} | {run['n_parameters']:,} | {mean['epochs']:.0f}"
        assert f"| {lead} ± {sd['epochs']:.0f} | {' | '.join(table[name])} |" in text
        if name == "none":
            continue
        place = re.escape(run["label"].partition("+ ")[2])
        (row,) = re.findall(rf"^\| gain of {place} \| \| \| (.*) \|$", text, re.M)
        gains[name] = row.replace("−", "-").split(" | ")
        for key, cell in zip(keys, gains[name], strict=True):
            assert float(cell.split()[0]) == pytest.approx(mean[key] - base[key], abs=6e-5)
        said = [f"{mean[key] / base[key] - 1:.1%}".replace("%", " %") for key in keys[:2]]
        assert f"{said[0]} in A and {said[1]} in B" in text or f"{said[0]} and {said[1]}," in text
        assert name == "stack" or f"{' and '.join(said)} on [Food" in front
    for k, d in enumerate("AB"):
        bold = ["**" * (float(gains[n][k].split("[")[1].split(",")[0]) > 0) for n in names[1:]]
        cells = [f"{b}{table[n][k]}{b}" for b, n in zip(["", *bold], names, strict=True)]
        cells += [number(runs["early"]["mean"][f"best/gca/0/{d}/cos"], 2, sign=True)]
        assert f"Food-Kitchen, {d} | `uni999` | {' | '.join(cells)} |" in front

    def angles(name, place, digits, of="abs_cos"):
        found = [f"best/gca/{place}/{d}/{of}" for d in "AB"]
        mean, sd = runs[name]["mean"], runs[name]["sd"]
        return [f"{mean[key]:.{digits}f} ± {sd[key]:.{digits}f}" for key in found]

    assert "{} (A) and {} (B), of".format(*angles("early", 0, 3)) in text
    cosines = [value.split()[0] for value in angles("early", 0, 3, "cos")]
    assert "(+{} and +{})".format(*cosines) in text
    assert "it is {} and {} at the first".format(*(v[:4] for v in angles("stack", 0, 2))) in text
    assert "the second {} and {} with a".format(*angles("stack", 1, 2)) in text
    assert all(of[f"best/gca/1/{d}/cos"] < 0 for of in runs["stack"]["per_seed"] for d in "AB")
    of = pl.read_csv(folder / "interventions.csv").filter(metric="ndcg@10/uni999")
    rows = re.findall(r"^\| .* \| (\S+ \[.*\]) \| (\S+ \[.*\]) \|$", text, re.M)[2:]
    replaced = ("orthogonal", "parallel", "zero", "random", "other_user", "mean")
    for name, cells in zip(replaced, rows, strict=True):
        for d, cell in zip("AB", cells, strict=True):
            (values,) = of.filter(intervention=name, domain=d).to_dicts()
            signed = [f"{values[k]:+.4f}".replace("0.", ".", 1) for k in ("change", "low", "high")]
            assert cell == "{} [{}, {}]".format(*signed).replace("-", "−")


def test_bold_on_the_front_page_are_gains_above_0():
    front = (FOLDER.parents[1] / "README.md").read_text()
    said = (FOLDER / "README.md").read_text().partition("| | uni999 A |")[2].replace("−", "-")
    for d, column in (("A", 2), ("B", 3)):
        (row,) = (line.split("|") for line in front.splitlines() if f"Electronics, {d} |" in line)
        for name, at in (("early", 4), ("stack", 5)):
            cells = re.search(rf"^\| {name} \|.*$", said, flags=re.M)[0].split("|")
            low = float(re.search(r"\[(\S+),", cells[column])[1])
            assert row[at].strip().startswith("**") == (low > 0)


def test_the_controls_of_beauty_electronics_are_those_of_their_index():
    index = pl.read_csv(FOLDER / "real_beauty_elec" / "index.csv")
    page = (FOLDER / "README.md").read_text()
    said = page.partition("## Parameters or the other")[2].partition("\n## ")[0]
    rows = {cells[1].strip(): cells for line in said.splitlines() if (cells := line.split("|"))[2:]}
    runs = {name: index.filter(run=name) for name in ("none", "wider", "self", "shuffled", "early")}
    metrics = [f"test/{d}/ndcg@10/{ranking}" for ranking in ("uni999", "full") for d in "AB"]
    for name, run in runs.items():
        assert len(run) == 5 and rows[name][2].strip() == f"{run['n_parameters'][0]:,}"
        for metric, cell in zip(metrics, rows[name][3:-1], strict=True):
            mean, sd = map(float, cell.split(" ± "))
            assert (mean, sd) == pytest.approx((run[metric].mean(), run[metric].std()), abs=6e-5)
    gains = [name for name in rows if " − " in name]
    assert len(gains) == 7
    for name in gains:
        one, other = (runs[part] for part in name.split(" − "))
        for metric, cell in zip(metrics, rows[name][3:-1], strict=True):
            gain = float(cell.split()[0].replace("−", "-"))
            assert gain == pytest.approx(one[metric].mean() - other[metric].mean(), abs=6e-5)
    for name in ("early", "self", "shuffled"):
        angles = [runs[name][f"best/gca/0/{d}/gated_abs_cos"].mean() for d in "AB"]
        assert f"{' and '.join(number(x, 2) for x in angles)} ({name})" in said
    front = (FOLDER.parents[1] / "README.md").read_text()
    for d, metric in zip("AB", metrics[:2], strict=True):
        over = runs["early"][metric].mean() / runs["wider"][metric].mean() - 1
        assert f"{over:.1%} ({d})".replace("%", " %") in front


def test_the_rows_of_llm4cdsr_are_those_of_its_summaries():
    text = section("LLM4CDSR, Food-Kitchen")
    said, names = (
        " ".join(text.split()),
        {"none": "baseline", "early": "GCA[0]", "stack": "GCA[0,1]"},
    )
    uni, full = {}, {}
    for kind in itertools.product(("official", "corrected"), names):
        path = FOLDER / "llm4cdsr_food_kitchen_small" / f"{'_'.join(kind)}.json"
        summary = json.loads(path.read_text())
        asked = ("all/ndcg@10/official100", "all/ndcg@10/uni100", "A/ndcg@10/uni100")
        asked += ("B/ndcg@10/uni100", "all/ndcg@10/full")
        found = [np.array([of[f"test/{name}"] for of in summary["per_seed"]]) for name in asked]
        official, uni[kind], full[kind] = found[0].mean(), found[1].mean(), found[-1].mean()
        found.insert(2, found[0] - found[1])
        signs = ["+" * (i == 2) for i in range(len(found))]
        cells = [
            f"{x.mean():{s}.4f} ± {x.std(ddof=1):.4f}" for x, s in zip(found, signs, strict=True)
        ]
        lead = f"| {kind[0]} | {names[kind[1]]} | {summary['n_parameters']:,} |"
        assert f"{lead} {' | '.join(cells)} |".replace("-", "−") in text, kind
        if kind[0] == "official":
            who = "baseline" if kind[1] == "none" else kind[1]
            assert f"{100 * (1 - uni[kind] / official):.0f} % ({who})" in said
    better, worse = ("corrected", "none"), ("official", "none")
    assert f"{100 * (full[better] / full[worse] - 1):.0f} % above the official one there" in said
    assert f"by `uni100` {100 * (uni[better] / uni[worse] - 1):.0f} % (" in said
    page = (FOLDER.parents[1] / "oa_jax" / "backbones" / "README.md").read_text()
    numbers = (100 * (of[better] / of[worse] - 1) for of in (uni, full))
    assert "is {:.0f} % (`uni100`) and {:.0f} % (among all".format(*numbers) in page


def test_the_correlations_of_llm4cdsr_are_those_of_its_summaries():
    rows = []
    for protocol, (variant, places) in itertools.product(
        ("corrected", "official"), {"early": "0", "stack": "01"}.items()
    ):
        path = FOLDER / "llm4cdsr_food_kitchen_small" / f"{protocol}_{variant}.json"
        for one, place, d in itertools.product(
            json.loads(path.read_text())["per_seed"], places, "AB"
        ):
            row = {"setting": protocol, "statistic": "abs_cos", "domain": d, "place": place}
            row |= {"configuration": variant, "seed": one["seed"], "published": None}
            row |= {"x": one[f"best/gca/{place}/{d}/abs_cos"], "y": one[f"test/{d}/ndcg@10/uni100"]}
            rows.append(row | dict.fromkeys(correlate.COVARIATES, 0.0))
    found = correlate.correlations(pl.DataFrame(rows)).filter(coefficient=correlate.WITHIN)
    assert found["points"].to_list() == [15] * 4
    text = " ".join(section("LLM4CDSR, Food-Kitchen").split())
    for protocol in ("corrected", "official"):
        words = [
            f"{r['value']:+.2f} [{r['low']:+.2f}, {r['high']:+.2f}]".replace("-", "−")
            for r in found.filter(setting=protocol).iter_rows(named=True)
        ]
        assert "{} in A and {} in B under".format(*words) + f" `{protocol}`" in text, words


def test_the_fusions_of_llm4cdsr_are_those_of_their_csv():
    of = pl.read_csv(FOLDER / "llm4cdsr_food_kitchen_small" / "modules.csv")
    runs = {key[0]: rows for key, rows in of.group_by("run", maintain_order=True)}
    base, text = runs.pop("none"), section("Other fusions on a real pair")
    assert len(runs) == 13 and all(len(rows) == 5 for rows in (base, *runs.values()))
    names = [f"test/{d}/ndcg@10/{of}" for of in ("full", "uni100", "official100") for d in "AB"]
    gains = {n: [paired(rows, base, name) for name in names] for n, rows in runs.items()}
    angles = {
        n: [rows[f"best/gca/0/{d}/gated_abs_cos"].mean() for d in "AB"] for n, rows in runs.items()
    }
    for name, rows in runs.items():
        cells = [f"`{name}`", f"{rows['n_parameters'][0]:,}"]
        for gain in gains[name][:4]:
            signed = [f"{x:+.4f}".replace("0.", ".", 1) for x in gain]
            cells.append("{} [{}, {}]".format(*signed).replace("-", "−"))
        cells += [f"{value:.2f}" for value in angles[name]]
        assert f"| {' | '.join(cells)} |" in text
    cells = [f"{base[name].mean():.4f} ± {base[name].std():.4f}" for name in names[:4]]
    assert f"| none | {base['n_parameters'][0]:,} | {' | '.join(cells)} |" in text
    every = [gain for of_run in gains.values() for gain in of_run]
    assert len(every) == 78 and "of 78" in text and base["epochs"].min() == 7
    assert not any(low > 0 or high < 0 for _, low, high in every)
    half = [high - mean for of_run in gains.values() for mean, _, high in of_run[:2]]
    assert f"{min(half):.4f} to {max(half):.4f} among all items" in text
    taus = []
    for k in range(4):
        pairs = [(angles[name][k % 2], gains[name][k][0]) for name in runs]
        taus.append(f"{stats.kendalltau(*zip(*pairs, strict=True)).statistic:+.2f}")
    said = "{} (A) and {} (B) among all items, and {} and {} by `uni100`".format(*taus)
    assert said.replace("-", "−") in " ".join(text.split())


@pytest.fixture(scope="module")
def of_claims():
    """{run: its seeds} of the arms of `real.py ask=claims` on Beauty-Electronics."""
    names = ("index", "parts", "widths", "places")
    folder, text = FOLDER / "real_beauty_elec", {"run": pl.String}
    read = [pl.read_csv(folder / f"{name}.csv", schema_overrides=text) for name in names]
    stack = json.loads((FOLDER / "abxi_beauty_elec_small" / "stack.json").read_text())["per_seed"]
    found = {key[0]: of.sort("seed") for one in read for key, of in one.group_by("run")}
    return found | {"stack": pl.DataFrame(stack).sort("seed")}


@pytest.fixture(scope="module")
def of_kitchen():
    """{run: its seeds} of ABXI on Food-Kitchen, with its controls."""
    folder = FOLDER / "abxi_food_kitchen_small"
    found = {n: json.loads((folder / f"{n}.json").read_text()) for n in ("none", "early")}
    found = {name: pl.DataFrame(run["per_seed"]).sort("seed") for name, run in found.items()}
    controls = pl.read_csv(folder / "controls.csv")
    return found | {key[0]: of.sort("seed") for key, of in controls.group_by("run")}


def section(title):
    return (FOLDER / "README.md").read_text().partition(f"\n## {title}")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "n_rows"),
    [("1.4 times the parameters", 8), ("The parts of the update", 9), ("Later places", 8)]
    + [("The angle moved by a penalty", 10), ("The controls on Food-Kitchen", 12)],
)
def test_arms_are_those_of_their_index(of_claims, of_kitchen, title, n_rows):
    runs = of_kitchen if "Kitchen" in title else of_claims
    metrics = [f"test/{d}/ndcg@10/{ranking}" for ranking in ("uni999", "full") for d in "AB"]
    name = r"(\w[\w-]*(?:=\S+)?)"
    rows = re.findall(
        rf"^\| {name}(?: − {name})? \| ((?:[^|]+ \| ){{3}}[^|]+) \|$", section(title), re.M
    )
    assert len(rows) == n_rows
    for name, other, cells in rows:
        of, expected = runs[name], []
        assert of["seed"].to_list() == [0, 1, 2, 3, 4]
        for metric in metrics:
            if not other:
                expected.append(f"{of[metric].mean():.4f} ± {of[metric].std():.4f}")
                continue
            signed = [f"{x:+.4f}".replace("0.", ".", 1) for x in paired(of, runs[other], metric)]
            expected.append("{} [{}, {}]".format(*signed).replace("-", "−"))
        assert cells.split(" | ") == expected, name


def test_what_is_said_of_the_controls_on_food_kitchen_is_in_their_files(of_kitchen):
    text = " ".join(section("The controls on Food-Kitchen").split())
    front = " ".join((FOLDER.parents[1] / "README.md").read_text().split())
    key = "test/{}/ndcg@10/uni999".format
    early, wider = of_kitchen["early"], of_kitchen["wider"]
    over = [early[key(d)].mean() / wider[key(d)].mean() - 1 for d in "AB"]
    said = [f"{x:.1%}".replace("%", " %") for x in over]
    assert "{} (A) and {} (B) above the baseline".format(*said) in text
    assert "it is {} and {} above one, by `full` not".format(*said) in front
    angles = pl.read_csv(FOLDER / "abxi_food_kitchen_small" / "angles.csv")
    assert len(angles) == 30
    means = {key: of.drop("run", "domain").mean() for key, of in angles.group_by("run", "domain")}
    for name in ("early", "self", "shuffled"):
        found = [means[name, d]["gated_abs_cos"][0] for d in "AB"]
        assert "{:.2f} and {:.2f} ({})".format(*found, name) in text
        of_run = [of_kitchen[name][f"best/gca/0/{d}/gated_abs_cos"].mean() for d in "AB"]
        assert found == pytest.approx(of_run, abs=1e-4)

    def both(words, statistic, run="early"):
        return words.format(*(means[run, d][statistic][0] for d in "AB")).replace("%", " %")

    assert both("|cos(X, X')| is {:.2f} and {:.2f} with the user's own", "abs_cos") in text
    assert both("{:.2f} and {:.2f} with another user's", "shuffled_abs_cos") in text
    assert both("X explains {:.0%} and {:.0%} of the variance", "r2_x") in text
    assert both("with the Y of its own time, {:.0%} and {:.0%}.", "r2_xy_aligned") in text
    assert both("{:.0%} (A) and {:.0%} (B) of its energy", "mean_share_update", "shuffled") in text
    assert set(angles.filter(run="early")["rank90_update"]) == {2.0, 3.0}
    gained = {d: paired(of_kitchen["self"], of_kitchen["none"], key(d))[1] for d in "AB"}
    assert gained["A"] > 0 > gained["B"]


def test_the_parameter_ratios_are_those_of_their_index(of_claims):
    text, front = section("1.4 times the parameters"), (FOLDER.parents[1] / "README.md").read_text()
    cells = {"early_d=32": [], "early": []}
    for ranking, d in itertools.product(("uni999", "full"), "AB"):
        rows = []
        for name in ("d=32", "d=48", "none", "wider", "d=96", *cells):
            values = of_claims[name][f"test/{d}/ndcg@10/{ranking}"].to_list()
            point = {"setting": "", "domain": d, "n_seeds": len(values), "values": values}
            point |= {"variant": name if name in cells else "baseline", "source": name}
            point |= {"parameters": of_claims[name]["n_parameters"][0]}
            rows.append(point | {"quality": np.mean(values), "sd": np.std(values, ddof=1)})
        for row in scaling.ratios(pl.DataFrame(rows, schema=scaling.POINTS)).to_dicts():
            cells[row["variant"]].append(
                f"{scaling.value(row)} {scaling.bounds(row)}".split(" of")[0]
            )
    for name, found in cells.items():
        size = of_claims[name]["n_parameters"][0]
        assert f"| {name} | {size:,} | {' | '.join(found)} |" in text
    assert f"{cells['early'][0]} times are enough" in front
    over, under = (of_claims[name]["test/A/ndcg@10/uni999"].mean() for name in ("d=96", "early"))
    assert f"ranks {100 * (over / under - 1):.0f} % above it in A" in front
    for large, small in (("d=96", "early"), ("d=48", "early_d=32")):
        ratio = of_claims[large]["n_parameters"][0] / of_claims[small]["n_parameters"][0]
        assert f"{ratio:.2f} times" in text


def test_the_gain_at_two_widths_is_that_of_their_index(of_claims):
    text = section("1.4 times the parameters")
    for d in "AB":
        one, other, at_32, base_32 = (
            of_claims[name][f"test/{d}/ndcg@10/uni999"].to_numpy()
            for name in ("early", "none", "early_d=32", "d=32")
        )
        more = (one - other) - (at_32 - base_32)
        half = stats.sem(more) * stats.t.ppf(0.975, 4)
        signed = [
            f"{x:+.4f}".replace("0.", ".", 1) for x in (more.mean() + k * half for k in (0, -1, 1))
        ]
        assert "{} [{}, {}] ({})".format(*signed, d) in text
        assert at_32.argmax() == of_claims["early_d=32"]["epochs"].arg_max() == 3
    *four, last = sorted(of_claims["early_d=32"]["epochs"])
    assert f"after {four[0]} to {four[-1]} epochs; the one\n  that trained for {last} has" in text
    angles = [
        of_claims[n][f"best/gca/0/{d}/abs_cos"].mean()
        for n in ("early_d=32", "early")
        for d in "AB"
    ]
    assert "is {:.2f} and {:.2f} at d = 32, {:.2f} and {:.2f} at 64".format(*angles) in text


def test_one_part_of_the_update_is_that_of_its_index(of_claims):
    text = section("The parts of the update")
    for k, name in enumerate(("parallel", "orthogonal")):
        scales = [of_claims["split"][f"best/gca/0/{d}/scale_{name}"] for d in "AB"]
        words = [f"{of.mean():.2f} ± {of.std():.2f}".replace("-", "−") for of in scales]
        assert f"{words[0]} (A) and\n  {words[1]} (B)" in text or " and ".join(words) in text
        assert all((of < 0).all() if k == 0 else (of > 0).all() for of in scales)
    for name in ("orthogonal", "early"):
        angles = [of_claims[name][f"best/gca/0/{d}/gated_abs_cos"].mean() for d in "AB"]
        assert "{:.2f} and {:.2f}".format(*angles) in text


def test_the_cosine_of_a_later_place_is_that_of_its_index(of_claims):
    found = [of_claims["1"][f"best/gca/1/{d}/abs_cos"] for d in "AB"]
    words = [f"{of.mean():.2f} ± {of.std():.2f}" for of in found]
    text = section("Later places")
    assert f"{words[0]} (A) and {words[1]} (B), with a positive" in text
    assert all((of_claims["1"][f"best/gca/1/{d}/cos"] > 0).all() for d in "AB")
    stack = json.loads((FOLDER / "abxi_beauty_elec_small" / "stack.json").read_text())
    names = [f"best/gca/1/{d}/abs_cos" for d in "AB"]
    words = [f"{stack['mean'][name]:.2f} ± {stack['sd'][name]:.2f}" for name in names]
    assert " and ".join(words) in " ".join(text.split())
    assert all(stack["mean"][name.replace("abs_cos", "cos")] < 0 for name in names)


def test_the_odd_seed_of_places_1_and_2_is_that_of_their_index(of_claims):
    both, text = of_claims["1-2"], " ".join(section("Later places").split())
    sizes = [both[f"best/gca/2/{d}/abs_cos"] for d in "AB"]
    assert [of.arg_max() for of in sizes] == [4, 4]
    lowest, highest = ([f(of[:4]) for of in sizes] for f in (min, max))
    in_four = [f"{low:.2f} to {high:.2f}" for low, high in zip(lowest, highest, strict=True)]
    assert "{} (A) and {} (B)".format(*in_four) in text
    assert "{:.2f} and {:.2f} in the fifth".format(*(of[4] for of in sizes)) in text
    cosines = [both[f"best/gca/2/{d}/cos"][4] for d in "AB"]
    assert "{:.2f} and {:.2f}".format(*cosines).replace("-", "−") in text
    scores = [both[f"test/{d}/ndcg@10/uni999"] for d in "AB"]
    assert "{:.4f} and {:.4f}, between".format(*(of[4] for of in scores)) in text
    assert all(of[:4].min() < of[4] < of[:4].max() for of in scores)
    first = [both[f"best/gca/1/{d}/abs_cos"] for d in "AB"]
    assert " and ".join(f"{of.mean():.2f} ± {of.std():.2f}" for of in first) in text
    others = ("early", "stack", "1", "self", "split", "orthogonal", "penalty=1", "penalty=-0.1")
    for d, of in zip("AB", scores, strict=True):
        assert of.mean() > max(of_claims[n][f"test/{d}/ndcg@10/uni999"].mean() for n in others)


def test_angles_under_a_penalty_are_those_of_their_index(of_claims):
    text, angles = section("The angle moved by a penalty"), ("cos", "abs_cos", "gated_abs_cos")
    for name in ("penalty=1", "penalty=0.1", "early", "penalty=-0.1"):
        values = [of_claims[name][f"best/gca/0/{d}/{angle}"] for angle in angles for d in "AB"]
        cells = [f"{of.mean():.2f} ± {of.std():.2f}" for of in values]
        assert f"| {name} | {' | '.join(cells)} |" in text
    weights = {"penalty=1": 1.0, "penalty=0.1": 0.1, "penalty=-0.1": -0.1}
    for name, weight in weights.items():
        assert set(of_claims[name]["gca.ortho_weight"]) == {weight}


def test_the_official_width_is_that_of_its_epochs():
    """Table, ends and correlations over the epochs of the one run of d = 256."""
    epochs = pl.read_csv(FOLDER / "abxi_beauty_elec_official" / "epochs.csv")
    page = (FOLDER / "README.md").read_text()
    text = page.partition("## The official width: one seed")[2].partition("\n## ")[0]
    quality = [f"val/{d}/ndcg@10/uni999" for d in "AB"]
    angles = [f"gca/0/{d}/{of}abs_cos" for of in ("", "gated_", "xy_") for d in "AB"]
    table = re.findall(r"^\| (\d+) \| (.*) \|$", text, re.M)
    assert len(table) > 7 and int(table[-1][0]) == epochs["epoch"][-1]
    for epoch, cells in table:
        (row,) = epochs.filter(epoch=int(epoch)).iter_rows(named=True)
        expected = [f"{row[name]:.4f}" for name in quality] + [
            f"{row[name]:.2f}" for name in angles
        ]
        assert cells.split(" | ") == expected
    r = [epochs.select(pl.corr(*pair)).item() for pair in zip(quality, angles, strict=False)]
    assert f"NDCG@10 is {r[0]:+.2f} (A) and {r[1]:+.2f} (B)" in text
    first, last = epochs.row(0, named=True), epochs.row(-1, named=True)
    ends = [f"{last[name]:.2f}" for name in angles]
    assert f"goes from 0.05 to {ends[0]} (A) and {ends[1]} (B)" in text
    assert f"from 0.19 to {ends[4]} and {ends[5]}" in text
    front = (FOLDER.parents[1] / "README.md").read_text()
    assert f"rises in training from 0.05 to {ends[0]} (A)" in front
    assert all(abs(first[name] - 0.05) < 0.005 for name in angles[:4])
    # Where either angle lies between 0.1 and 0.2, and how well it ranks there.
    passage = epochs.filter(pl.any_horizontal(pl.col(angles[:2]).is_between(0.1, 0.2)))
    assert (passage["epoch"][0], passage["epoch"][-1]) == (7, 22) and "epochs 7 to 22" in text
    assert all(passage[name].max() < 0.6 * last[name] for name in quality)


def test_the_official_width_is_that_of_its_angles():
    """The second table, after training and before, and the digits of the sentences below it."""
    of = pl.read_csv(FOLDER / "abxi_beauty_elec_official" / "angles.csv")
    page = (FOLDER / "README.md").read_text()
    text = page.partition("What X' has become after epoch 80")[2].partition("\nAnd what it is")[0]
    values = {(p, d, s): value for p, _, d, s, value in of.iter_rows()}
    names = ("abs_cos", "shuffled_abs_cos", "popularity/1/abs_cos", "popularity/5/abs_cos", "r2_x")
    names += ("rank90_update", "rank90_x", "mean_share_update", "gate_mean")
    rows = re.findall(r"^\| (.*) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", text, re.M)[-9:]
    for name, (_, *cells) in zip(names, rows, strict=True):
        found = [values[when, d, name] for when in ("best", "init") for d in "AB"]
        assert cells == [f"{v:.0f}" if "rank90" in name else f"{v:.3f}" for v in found], name
    best = {name: [values["best", d, name] for d in "AB"] for name in names}
    others = zip(best["abs_cos"], best["shuffled_abs_cos"], strict=True)
    assert all(1.9 < own / other < 2.05 for own, other in others)
    assert "explains {:.0%} and {:.0%} of".format(*best["r2_x"]).replace("%", " %") in text
    for name in names[2:4]:
        assert "{:.2f} and {:.2f} for the".format(*best[name]) in text


def test_the_official_width_is_that_of_its_interventions():
    of = pl.read_csv(FOLDER / "abxi_beauty_elec_official" / "interventions.csv").filter(scale=1.0)
    text = (FOLDER / "README.md").read_text().partition("α ⊙ X' of the trained model")[2]
    rows = re.findall(r"^\| (.*?) \| (.*\]) \|$", text.partition("- **Nearly all")[0], re.M)
    columns = [(m, d) for m in ("ndcg@10/uni999", "ndcg@10/full") for d in "AB"]
    names = ("zero", "parallel", "orthogonal", "other_user", "mean")

    def clear_of_0(name):
        found = of.filter(intervention=name, metric="ndcg@10/uni999")
        return found.filter(pl.col("low") * pl.col("high") > 0)["domain"].to_list()

    for name, (_, cells) in zip(names, rows, strict=True):
        expected = []
        for metric, domain in columns:
            (row,) = of.filter(intervention=name, metric=metric, domain=domain).to_dicts()
            signed = [f"{row[k]:+.4f}".replace("0.", ".", 1) for k in ("change", "low", "high")]
            expected.append("{} [{}, {}]".format(*signed).replace("-", "−"))
        assert cells.split(" | ") == expected
    assert clear_of_0("zero") == clear_of_0("parallel") == ["A", "B"]
    assert clear_of_0("other_user") == [] and clear_of_0("mean") == ["B"]


def of_angles(when, statistic, place):
    """{folder/run/domain: the mean of a statistic} of our summaries with GCA at that place."""
    out = {}
    for path in FOLDER.glob("*_*/*.json"):
        mean = {} if path.stem == "rules" else json.loads(path.read_text())["mean"]
        names = {d: f"{when}/gca/{place}/{d}/{statistic}" for d in "AB"}
        of = path.relative_to(FOLDER).with_suffix("")
        out |= {f"{of}/{d}": mean[name] for d, name in names.items() if name in mean}
    return out


def test_angles_in_prose_are_those_of_the_summaries():
    pages = (FOLDER / "README.md", FOLDER.parent / "README.md", FOLDER.parents[1] / "README.md")
    said, how, front = (" ".join(page.read_text().split()) for page in pages)
    untrained = of_angles("init", "cos_abs", 0)
    text = f"{min(untrained.values()):.3f} to {max(untrained.values()):.3f}"
    assert f"{text} in our" in said and f"{text} at place 0" in how and f"is {text})" in front
    times = [0.114 / end for end in (max(untrained.values()), min(untrained.values()))]
    assert round(times[0]) == 4 and 23 <= times[1] < 24 and "4 to 23 times" in said
    for kind, statistic, places, text in (
        ("official", "abs_cos", "01", "0.14 to 0.20 under `official`"),
        ("corrected", "abs_cos", "01", "0.17 to 0.25 under `corrected`"),
        ("", "xy_cos_abs", "0", "0.005 to 0.020 at place 0"),
        ("", "xy_cos_abs", "1", "0.047 to 0.113 at stack's place 1"),
    ):
        of = [one for p in places for one in of_angles("best", statistic, p).items()]
        found = [v for name, v in of if name.startswith("llm") and f"/{kind}" in name]
        digits = 2 if statistic == "abs_cos" else 3
        assert text.startswith(f"{min(found):.{digits}f} to {max(found):.{digits}f}")
        assert text in said
    early = of_angles("best", "cos_abs", 0)
    texts = [f"{early[f'abxi_beauty_elec_small/early/{d}']:.3f}" for d in "AB"]
    assert f"|mean cos|, is {texts[0]} ±" in said and f"{texts[1]} ±" in said


def with_gca(index, rho):
    same = (pl.col("data.world.redundancy") == rho) & (pl.col("data.world.synergy") == 0)
    return index.filter(same & pl.col("gca.positions").is_not_null())


def angle(runs, domain):
    places = pl.col(f"^best/gca/./{domain}/gated_abs_cos$")
    return runs.select(pl.mean_horizontal(places)).to_series().to_numpy()


@pytest.mark.parametrize(("study", "n_runs"), [("phase", 330), ("arms", 405)])
def test_the_cells_of_a_study_are_those_of_its_index(study, n_runs):
    index, cells = (pl.read_csv(FOLDER / study / name) for name in ("index.csv", "phase.csv"))
    assert len(index) == n_runs and index["run"].n_unique() == n_runs / 5
    for cell in cells.iter_rows(named=True):
        run, base = (index.filter(run=cell[name]) for name in ("run", "baseline"))
        metric = f"test/{cell['domain']}/ndcg@10/full"
        assert cell["gain"] == pytest.approx(run[metric].mean() - base[metric].mean(), abs=3e-5)
        assert cell["angle"] == pytest.approx(angle(run, cell["domain"]).mean(), abs=3e-5)


def paired(one, other, metric):
    """Mean of the differences of seeds, and the ends of its interval."""
    difference = (one.sort("seed")[metric] - other.sort("seed")[metric]).to_numpy()
    mean, half = difference.mean(), stats.sem(difference) * stats.t.ppf(0.975, 4)
    return mean, mean - half, mean + half


def test_gains_with_seeds_paired_are_those_of_their_index():
    above, titles = {}, {"phase": "A phase diagram", "arms": "Arms and other fusions"}
    text = {study: " ".join(section(title).split()) for study, title in titles.items()}
    for study in titles:
        index, cells = (pl.read_csv(FOLDER / study / n) for n in ("index.csv", "phase.csv"))
        above[study], below = [], []
        for cell in cells.iter_rows(named=True):
            runs = (index.filter(run=cell[name]) for name in ("run", "baseline"))
            mean, low, high = paired(*runs, f"test/{cell['domain']}/ndcg@10/full")
            words = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            where = cell["kind"], cell["domain"], cell["x"], cell["y"], words
            above[study] += [where] if low > 0 else []
            below += [where] if high < 0 else []
        if study == "phase":
            assert (len(above[study]), len(below)) == (4, 4) and "4 of the 100" in text[study]
            early = [of for of in (*above[study], *below) if of[:2] == ("early", "A")]
            assert [of[2:4] for of in early] == [(0.75, 32), (0.5, 64)] and early[0][4] in text[
                study
            ]
    assert len(above["arms"]) == 6 and "six lie above 0" in text["arms"]
    names = [[k for k, d, x, *_ in above["arms"] if (d, x) == ("A", rho)] for rho in (0, 0.5)]
    said = "`experts`, `film`, `flamingo` and `layer_norm=False` at ρ = 0"
    assert said in text["arms"] and "`flamingo` and `source=other` at ρ = ½" in text["arms"]
    known = ("experts", "film", "flamingo", "layer_norm=False"), ("flamingo", "source=other")
    for found, expected in zip(names, known, strict=True):
        assert all(name in kind for name, kind in zip(expected, sorted(found), strict=True))
    front = (FOLDER.parents[1] / "README.md").read_text()
    assert f"or {sum(map(len, above.values()))} with the seeds paired" in front


def test_the_controls_with_seeds_paired_are_those_of_their_index():
    index = pl.read_csv(FOLDER / "real_beauty_elec" / "index.csv")
    text = section("Parameters or the other domain").partition("With the seeds paired")[2]
    asked = [("none", "full", "A"), ("none", "full", "B"), ("wider", "uni999", "B")]
    for other, ranking, d in [*asked, ("self", "uni999", "B")]:
        runs = (index.filter(run=name) for name in ("early", other))
        signed = [
            f"{x:+.4f}".replace("0.", ".", 1) for x in paired(*runs, f"test/{d}/ndcg@10/{ranking}")
        ]
        assert "{} [{}, {}]".format(*signed).replace("-", "−") in text


def test_the_correlations_of_the_phase_diagram_change_with_the_widths():
    index = pl.read_csv(PHASE / "index.csv")
    said = " ".join((PHASE.parent / "README.md").read_text().replace("−", "-").split())
    for least in (0, 32):
        found = {}
        for domain in "AB":
            for rho in (0, 0.5, 1):
                runs = with_gca(index, rho).filter(pl.col("model.d_embed") >= least)
                y = runs[f"test/{domain}/ndcg@10/full"].to_numpy()
                found.setdefault(domain, []).append(np.corrcoef(angle(runs, domain), y)[0, 1])
        sign = "+" if least else ""
        texts = {d: ", ".join(f"{r:{sign}.2f}" for r in values) for d, values in found.items()}
        joint = " and " if least else " in A and "
        assert f"is {texts['A']}{joint}{texts['B']}" in said


def test_the_order_of_the_phase_diagram_is_of_one_world():
    cells = pl.read_csv(PHASE / "phase.csv")
    said = " ".join((FOLDER / "README.md").read_text().split())
    alike = cells.filter(~pl.col("kind").str.contains("synergy"), x=0.5, y=32)
    taus = [line.partition(" over 8 kinds ")[2] for line in orders(alike)]
    assert f"τ {taus[0]} in A, {taus[1]} in B" in said
    for source in ("other", "shuffled", "self"):  # the mean over three worlds
        of = cells.filter(kind=f"early, source={source}", domain="A", y=32)
        assert len(of) == 3 and f"{source} {of['angle'].mean():.2f}" in said


def test_the_angles_of_alignments_are_those_of_their_index():
    said = (FOLDER / "README.md").read_text()
    said, signed = said[said.index("## Four alignments") :].replace("−", "-"), []
    for study in ("alignment", "views"):
        index = pl.read_csv(FOLDER / study / "index.csv", infer_schema_length=None)
        for kind in ("as_is", "rotated", "aligned", "shifted"):
            run, base = (index.filter(run=f"alignment={kind},gca={g}") for g in ("early", "none"))
            names = (f"best/gca/0/A/gated_{name}abs_cos" for name in ("", "shuffled_", "centred_"))
            angles = " | ".join(f"{run[name].mean():.2f}" for name in names)
            metric = "test/A/ndcg@10/uni100"
            gain = f"{run[metric].mean() - base[metric].mean():+.4f}"
            assert re.search(rf"\| {re.escape(gain)} \[.* \| {angles} \|\n", said), (study, kind)
            signed += [run[f"best/gca/0/{d}/gated_cos"] for d in "AB"]
    signed = pl.concat(signed)
    assert len(signed) == 80 and f"above 0, {signed.min():+.2f} to {signed.max():+.2f} (A" in said


def test_what_is_said_of_arms_is_in_their_cells():
    cells = pl.read_csv(FOLDER / "arms" / "phase.csv")
    page = " ".join((FOLDER / "README.md").read_text().replace("−", "-").split())
    said = page[page.index("## Arms and other") :]
    assert len(cells) == 150 and (cells["low"] > 0).sum() == 4 and "four lie above 0" in said
    front, phase = (FOLDER.parents[1] / "README.md").read_text(), pl.read_csv(PHASE / "phase.csv")
    above = [(of["low"] > 0).sum() for of in (cells, phase)]
    assert f"{sum(above)} of {len(cells) + len(phase)} intervals lie above 0" in front
    assert above[1] == 1 and "Of 100 intervals, which are not corrected, it is the only one" in page
    for cell in cells.filter(domain="A", x=0).iter_rows(named=True):
        bounds = f"[{cell['low']:+.4f}, {cell['high']:+.4f}]"
        angles = " | ".join(f"{cell[name]:.2f}" for name in ("angle", "shuffled", "centred"))
        row = rf"{re.escape(bounds)} [^\n]*? \| {re.escape(angles)} \|"
        assert re.search(row, said), cell["kind"]
    fusions = cells.filter(pl.col("kind").str.contains("fusion=") | (pl.col("kind") == "early"))
    for some in (cells.filter(~pl.col("kind").str.contains("part=")), fusions):
        taus = [re.search(r"kinds (\S+)", line)[1] for line in orders(some)]
        in_a, in_b = ([tau.replace("−", "-") for tau in taus[d::2]] for d in (0, 1))
        assert f"{', '.join(in_b)}" in said and all(tau in said for tau in in_a)
    assert f"{', '.join(in_a)} in A and {', '.join(in_b)} [-0.91, +0.01] in B" in said


def angle_study():
    """(index, factors, what the page says)"""
    names = "index.csv", "factors.csv"
    index, found = (pl.read_csv(FOLDER / "angle" / n, infer_schema_length=None) for n in names)
    said = (FOLDER / "README.md").read_text().replace("−", "-")
    said = said[said.index("## What moves the angle") : said.index("## Arms and other")]
    return index, found, " ".join(said.split())


def test_the_changes_of_the_angle_are_those_of_its_index():
    index, found, said = angle_study()
    assert len(index) == 135 and len(found) == 2 * 39
    for row in found.iter_rows(named=True):
        run, twin = (index.filter(run=row[name]).sort("seed") for name in ("run", "reference"))
        d = row["domain"]
        by = angle(run, d) - angle(twin, d)
        assert row["angle_by"] == pytest.approx(by.mean(), abs=3e-5)
        half = 2.776 * by.std(ddof=1) / 5**0.5  # Student's t with four degrees of freedom
        assert row["angle_high"] - row["angle_by"] == pytest.approx(half, abs=2e-3)
        metric = f"test/{d}/ndcg@10/full"
        assert row["quality_by"] == pytest.approx((run[metric] - twin[metric]).mean(), abs=3e-5)
        if d == "A" and not row["others"]:
            texts = []
            for m, digits in (("angle", 2), ("mean_cos", 2), ("quality", 4)):
                by, *ends = (row[f"{m}_{name}"] for name in ("by", "low", "high"))
                digits += digits == 2 and min(map(abs, (by, *ends))) < 0.005  # whose sign is seen
                texts.append(f"{number(by, digits, True)} {interval(*ends, digits, True)}")
            assert f"| {' | '.join(texts)} |".replace("−", "-") in said, row["change"]
    alone = found.filter(others="")
    assert len(alone) == 32 and not (alone["quality_low"] > 0).any()  # none raises it for sure
    untied = found.filter(change="tied: True → False")
    ends = untied.group_by("domain").agg(
        low=-pl.col("angle_by").max(), high=-pl.col("angle_by").min()
    )
    (_, *a), (_, *b) = ends.sort("domain").rows()
    assert "{:.2f} to {:.2f} (B: {:.2f} to {:.2f})".format(*a, *b) in said
    tanh = found.filter(change="gate_act: sigmoid → tanh")
    for others in ("d_embed=128", "tied=False"):
        rows = tanh.filter(others=others).select("angle_by", "angle_low", "angle_high").rows()
        assert all("{:.3f} [{:.3f}, {:.3f}]".format(*row) in said for row in rows)
    front = (FOLDER.parents[1] / "README.md").read_text()
    assert "by 0.04 at most" in front and f"{tanh['angle_by'].abs().max():.2f}" == "0.04"


def test_the_shares_of_the_scatter_are_those_of_its_index():
    index, _, said = angle_study()
    shares = {}
    for tied in (True, False):
        mixed = index.filter(pl.col("run").str.contains(f"tied={tied},"))
        for d in "AB":
            counts, _ = np.histogram(mixed[f"best/gca/0/{d}/cos"].abs(), [0, 0.05, 0.25, 0.4, 1])
            shares[tied, d] = [f"{100 * n / len(mixed):.0f}" for n in counts]
    for tied in (True, False):
        both = zip(shares[tied, "A"], shares[tied, "B"], strict=True)
        assert ", ".join(f"{a} and {b} %" for a, b in both) in said
