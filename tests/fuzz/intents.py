"""Edits and whole requests that are broken or odd, from files and from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fuzz.harness import Scene, Works, asking, cases, given, request_error, setting
from fuzz.regions import EVERYTHING, INF, NAN, NOBODY


def edit(**fields: Any):
    """One edit, knocking out ERBB2 unless told otherwise."""
    return given("edits", json.dumps([{"operation": "knock_out", "genes": ["ERBB2"], **fields}]))


def edits(text: str | bytes):
    return given("edits", text)


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
FINE = Works("1 of 30 spots")
NOT_A_LIST = request_error("expected a list of edits")
NOT_YAML = request_error("is not valid YAML")
UNSAFE = request_error("asks to build an object")

EDITS = cases(
    "edits",
    "nothing",
    [
        ("a knock-out", edit(), FINE),
        (
            "every operation",
            edits(
                "- {operation: scale, genes: [ERBB2], factor: 2}\n- {operation: add, genes: [ERBB2], log_units: 1}\n- {operation: set_quantile, genes: [ERBB2], quantile: 0.9}\n- {operation: knock_out, genes: [ERBB2]}\n- {operation: towards, target_spots: [SPOT01-1]}\n"
            ),
            FINE,
        ),
        ("under the key edits", edits("edits:\n- {operation: knock_out, genes: [ERBB2]}\n"), FINE),
        ("an empty list", edits("[]"), FINE),
        ("empty file", edits(""), NOT_A_LIST),
        *(
            (f"the value {text}", edits(text), NOT_A_LIST)
            for text in ("null", "7", "hello", "true", "{a: 1}", "{}", "2026-01-01")
        ),
        *(
            (f"a list of {text}", edits(f"[{text}]"), request_error("edits.yaml: 0"))
            for text in ("null", "7", "hello", "[]", "true")
        ),
        ("no operation", edits("- genes: [ERBB2]"), request_error("edits.yaml: 0", "operation")),
        ("an unknown operation", edit(operation="fly"), request_error("0", "'fly'")),
        ("an operation that is a list", edits("- {operation: [scale], genes: [A]}"), request_error("0")),
        ("a field nobody knows", edit(colour="red"), request_error("0.knock_out.colour", "Extra inputs")),
        (
            "a misspelt field",
            edits("- {operation: scale, genes: [ERBB2], facter: 2}"),
            request_error("factor", "facter"),
        ),
        (
            "three faults at once",
            edits(
                "- {operation: scale, genes: [A]}\n- {operation: fly}\n- {operation: add, genes: [A], log_units: x}\n"
            ),
            request_error("0.scale.factor", "'fly'", "2.add.log_units"),
        ),
        (
            "a key twice",
            edits("- {operation: scale, genes: [ERBB2], factor: 2, factor: 3}"),
            request_error("factor", "twice"),
        ),
        ("no gene", edits("- operation: knock_out"), request_error("at least one gene or program")),
        ("genes are a word", edit(genes="ERBB2"), request_error("0.knock_out.genes")),
        ("genes are an object", edit(genes={"ERBB2": 1}), request_error("0.knock_out.genes")),
        ("genes are numbers", edit(genes=[1, 2]), request_error("0.knock_out.genes.0", "valid string")),
        (
            "genes are yes and no",
            edits("- {operation: knock_out, genes: [ON, NO]}"),
            request_error("0.knock_out.genes.0", "valid string"),
        ),
        ("a gene is null", edit(genes=[None]), request_error("0.knock_out.genes.0")),
        ("a gene is empty", edit(genes=[""]), request_error("edits[0].genes", "not in this section")),
        ("a gene nobody has", edit(genes=["NOSUCH1"]), request_error("edits[0].genes", "NOSUCH1", "match exactly")),
        ("a gene in small letters", edit(genes=["erbb2"]), request_error("edits[0].genes", "erbb2")),
        ("a gene with blanks", edit(genes=[" ERBB2 "]), request_error("edits[0].genes", "' ERBB2 '")),
        ("an Ensembl id that the section lacks", edit(genes=["ENSG00000141736"]), request_error("ENSG00000141736")),
        ("a gene twice", edit(genes=["ERBB2", "ERBB2"]), FINE),
        ("a thousand unknown genes", edit(genes=[f"X{i}" for i in range(1000)]), request_error("and 992 more")),
        ("a gene of a megabyte", edit(genes=["G" * 1_000_000]), request_error("edits[0].genes", "GGG...")),
        ("a gene of control characters", edit(genes=["\x1b[2J\x07"]), request_error(r"\x1b[2J\x07")),
        ("a gene of a lone surrogate", edits('- {operation: knock_out, genes: ["\\ud800"]}'), request_error("edits")),
        ("a gene that is a path", edit(genes=["../../etc/passwd"]), request_error("../../etc/passwd")),
        (
            "a program nobody knows",
            edit(programs=["dreaming"]),
            request_error("edits[0].programs", "dreaming", "known programs are"),
        ),
        (
            "a program whose genes the section lacks",
            edits("- {operation: knock_out, programs: [endothelial]}"),
            request_error("edits[0].programs", "endothelial", "none of its"),
        ),
        ("spots are a list", edit(spots=["SPOT01-1"]), request_error("0.knock_out.spots")),
        ("a spot nobody knows", edit(spots={"NOWHERE": 1}), request_error("edits[0].spots", "NOWHERE")),
        ("spots are empty", edit(spots={}), request_error("spots")),
        *(
            (f"a spot's weight is {w!r}", edit(spots={"SPOT01-1": w}), request_error("0.knock_out.spots.SPOT01-1"))
            for w in (2, -0.1, NAN, INF, "x", None, [1])
        ),
        *((f"strength {v!r}", edit(strength=v), request_error("strength")) for v in (2, -1, NAN, INF, "much", None)),
        ("strength 0", edit(strength=0), FINE),
        *(
            (
                f"factor {v!r}",
                edits(json.dumps([{"operation": "scale", "genes": ["ERBB2"], "factor": v}])),
                request_error("0.scale.factor"),
            )
            for v in (-1, 1001, NAN, INF, "x", None, [2])
        ),
        ("factor as a word that is a number", edits('- {operation: scale, genes: [ERBB2], factor: "2"}'), FINE),
        *(
            (
                f"log units {v!r}",
                edits(json.dumps([{"operation": "add", "genes": ["ERBB2"], "log_units": v}])),
                request_error("0.add.log_units"),
            )
            for v in (11, -11, NAN, -INF)
        ),
        *(
            (
                f"quantile {v!r}",
                edits(json.dumps([{"operation": "set_quantile", "genes": ["ERBB2"], "quantile": v}])),
                request_error("0.set_quantile.quantile"),
            )
            for v in (1.5, -0.1, NAN)
        ),
        ("towards nothing", edits("- operation: towards"), request_error("either target_profile or target_spots")),
        (
            "towards a profile and spots",
            edits("- {operation: towards, target_profile: adipose, target_spots: [SPOT01-1]}"),
            request_error("either target_profile or target_spots"),
        ),
        (
            "towards a profile that the checkpoint lacks",
            edits("- {operation: towards, target_profile: bone}"),
            request_error("'bone' is unknown", "none"),
        ),
        (
            "towards spots nobody knows",
            edits("- {operation: towards, target_spots: [X]}"),
            request_error("edits[0].target_spots"),
        ),
        ("two thousand edits", edits("- {operation: knock_out, genes: [ERBB2]}\n" * 2000), FINE),
        ("tabs for blanks", edits("-\toperation: scale\n\tgenes: [A]"), NOT_YAML),
        ("an open bracket", edits("- {operation: scale"), NOT_YAML),
        ("two documents", edits("---\n- {operation: knock_out, genes: [ERBB2]}\n---\n[]\n"), NOT_YAML),
        ("random bytes", edits(bytes(range(128, 256))), request_error("cannot be read")),
        ("control characters", edits("\x00\x01\x02"), NOT_YAML),
        ("UTF-16", edits("[]".encode("utf-16")), request_error("cannot be read")),
        ("a tag that runs a command", edits('!!python/object/apply:os.system ["touch pwned"]'), UNSAFE),
        ("a tag that makes an object", edits("- !!python/object:pathlib.Path {}"), UNSAFE),
        ("a tag that loads a module", edits("- !!python/module:antigravity"), UNSAFE),
        ("a tag of our own", edits("- !stmdit {operation: knock_out, genes: [ERBB2]}"), UNSAFE),
        ("a billion laughs", edits(LAUGHS), request_error("aliases")),
        (
            "a billion laughs as genes",
            edits(LAUGHS + "edits:\n- {operation: knock_out, genes: *a9}\n"),
            request_error("aliases"),
        ),
        (
            "a billion laughs in a list",
            edits("- &a0 [lol, lol]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))),
            request_error("aliases"),
        ),
        ("a list that holds itself", edits("&a [*a]"), request_error("itself")),
        ("an object that holds itself", edits("- &a {operation: knock_out, genes: *a}"), request_error("itself")),
        (
            "an alias used as it is meant",
            edits("- {operation: knock_out, genes: &g [ERBB2]}\n- {operation: scale, genes: *g, factor: 2}\n"),
            FINE,
        ),
        ("a merged object", edits("- &e {operation: knock_out, genes: [ERBB2]}\n- {<<: *e, strength: 0.5}\n"), FINE),
        ("an alias of nothing", edits("- *nowhere"), NOT_YAML),
        ("lists nested a hundred thousand deep", edits("[" * 100_000 + "]" * 100_000), request_error("nested")),
        ("objects nested a thousand deep", edits("{a: " * 1000 + "1" + "}" * 1000), request_error("nested")),
        ("forty megabytes", edits("# " + "x" * 40_000_000), request_error("megabytes")),
        (
            "an integer of 5000 digits",
            edits("- {operation: scale, genes: [ERBB2], factor: " + "9" * 5000 + "}"),
            request_error("edits.yaml"),
        ),
        (
            "a date as a factor",
            edits("- {operation: scale, genes: [ERBB2], factor: 2026-01-01}"),
            request_error("0.scale.factor"),
        ),
        ("a date that is none", edits("- {operation: scale, genes: [ERBB2], factor: 2026-99-99}"), NOT_YAML),
        ("a list as a key", edits("? [a, b]\n: 1\n"), request_error("edits.yaml")),
        ("missing", setting(edits=lambda s: s.root / "nothing.yaml"), request_error("cannot be read")),
        (
            "a folder",
            lambda s: (setting(edits=s.root / "edits.yaml")(s), s.edits.mkdir()),
            request_error("cannot be read"),
        ),
        (
            "a link to itself",
            lambda s: (setting(edits=s.root / "edits.yaml")(s), s.edits.symlink_to("edits.yaml")),
            request_error("cannot be read"),
        ),
        ("a device that never ends", setting(edits=Path("/dev/zero")), request_error("no file")),
        ("a path with a NUL", setting(edits=lambda s: s.root / "a\0b"), request_error("cannot be read")),
    ],
)


def mapping(edits: str = "[]", **parts: str) -> str:
    """The text of an edit file with its parts."""
    return "{" + ", ".join(f"{name}: {text}" for name, text in {**parts, "edits": edits}.items()) + "}"


def beside(text: str, **files: str | bytes):
    """An edit file, and files beside it that it may name: ``sets_gmt`` is sets.gmt."""

    def change(scene: Scene) -> None:
        for name, content in files.items():
            file = scene.root / name.replace("_", ".")
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        edits(text)(scene)

    return change


MINE = "[{operation: knock_out, programs: [mine]}]"
FAR = "[{operation: towards, target_profile: far}]"
NO_GMT = request_error("edits.yaml: programs", "cannot be read as a GMT file")

NAMED = cases(
    "programs and profiles of edits",
    "nothing",
    [
        ("a program of one's own", edits(mapping(programs="{mine: [ERBB2]}", edits=MINE)), FINE),
        ("a program with weights", edits(mapping(programs="{mine: {ERBB2: 0.5}}", edits=MINE)), FINE),
        ("programs of a GMT file", beside(mapping(programs="sets.gmt", edits=MINE), sets_gmt="mine\tx\tERBB2\n"), FINE),
        (
            "a GMT file by its absolute path",
            lambda s: (
                (s.root / "sets.gmt").write_text("mine\tx\tERBB2\n"),
                edits(
                    json.dumps(
                        {
                            "programs": [str(s.root / "sets.gmt")],
                            "edits": [{"operation": "knock_out", "programs": ["mine"]}],
                        }
                    )
                )(s),
            ),
            FINE,
        ),
        ("the key programs with nothing behind it", edits("programs:\nprofiles:\nedits: []"), FINE),
        ("no program and no GMT file", edits("{programs: [], profiles: {}, edits: []}"), FINE),
        *(
            (f"programs are {text}", edits(mapping(programs=text)), request_error("edits.yaml: programs"))
            for text in ("7", "0", "true", "[7]", "[[sets.gmt]]", "[null]", "2026-01-01")
        ),
        ("programs are an empty word", edits('{programs: "", edits: []}'), NO_GMT),
        ("programs with a NUL", edits('{programs: "a\\0b", edits: []}'), request_error("programs", "null byte")),
        ("programs of a device that never ends", edits("{programs: /dev/zero, edits: []}"), NO_GMT),
        (
            "programs of the home of nobody",
            edits("{programs: ~nosuchuser/x.gmt, edits: []}"),
            request_error("programs"),
        ),
        *(
            (f"a program is {text}", edits(mapping(programs=f"{{mine: {text}}}")), request_error("programs.mine"))
            for text in ("7", "ERBB2", "[]", "{}", "null", "[7]", "[[ERBB2]]", "{ERBB2: 2}", "{ERBB2: .nan}")
        ),
        ("a program whose name is a number", edits("{programs: {1: [ERBB2]}, edits: []}"), request_error("programs.1")),
        (
            "two GMT files with one set of different genes",
            beside(mapping(programs="[a.gmt, b.gmt]", edits=MINE), a_gmt="mine\tx\tERBB2\n", b_gmt="mine\tx\tESR1\n"),
            request_error("b.gmt gives 'mine' other genes"),
        ),
        ("a profile of one's own", edits(mapping(profiles="{far: {values: {ERBB2: 1}}}", edits=FAR)), FINE),
        (
            "a profile of a file",
            beside(mapping(profiles="{far: p.json}", edits=FAR), p_json='{"values": {"ERBB2": 1}}'),
            FINE,
        ),
        *(
            (f"profiles are {text}", edits(mapping(profiles=text)), request_error("edits.yaml: profiles"))
            for text in ("7", "p.json", "[p.json]", "false")
        ),
        *(
            (f"a profile is {text}", edits(mapping(profiles=f"{{far: {text}}}")), request_error("profiles.far"))
            for text in ("7", '""', "[]", "{}", "/dev/zero", "nothing.json", '"a\\0b"')
        ),
        (
            "a profile nested a hundred thousand deep",
            beside("{profiles: {far: p.json}, edits: []}", p_json="[" * 100_000),
            request_error("profiles.far", "p.json"),
        ),
        (
            "faults of every kind at once",
            edits("{programs: none.gmt, profiles: {far: none.json}, edits: [{operation: fly}]}"),
            request_error("none.gmt", "none.json", "'fly'"),
        ),
    ],
)

SPOTS = {"kind": "spots", "ids": ["SPOT01-1", "SPOT02-1"]}
ODD = (None, "x", [], {}, 7.5, True)


def whole(**fields: Any):
    return given("request_file", json.dumps(fields), "request.json")


REQUESTS = cases(
    "requests",
    "nothing",
    [
        ("nothing but defaults", given("request_file", "{}"), EVERYTHING),
        ("spots by their ids", asking(region=SPOTS), Works("2 of 30 spots")),
        ("a spot twice", asking(region={"kind": "spots", "ids": ["SPOT01-1"] * 3}), FINE),
        ("all spots", asking(region={"kind": "all"}), EVERYTHING),
        (
            "programs of one's own as a list",
            whole(programs={"mine": ["ERBB2"]}, edits=[{"operation": "knock_out", "programs": ["mine"]}]),
            EVERYTHING,
        ),
        ("programs are a number", whole(programs=7), request_error("request.json: programs")),
        ("programs of a missing file", whole(programs="none.gmt"), request_error("request.json: programs", "none.gmt")),
        ("a profile of a missing file", whole(profiles={"p": "none.json"}), request_error("profiles.p", "none.json")),
        ("an empty file", given("request_file", ""), request_error("expected a mapping")),
        *(
            (f"the value {text}", given("request_file", text), request_error("expected a mapping"))
            for text in ("null", "[]", "7", "word")
        ),
        ("keys that are numbers", given("request_file", "{1: 2, true: 3}"), request_error("request.yaml")),
        ("a key that is null", given("request_file", "{null: 2}"), request_error("request.yaml")),
        ("a field nobody knows", whole(colour="red"), request_error("colour", "Extra inputs")),
        ("a method's name as a field", whole(model_dump=1, __class__=2), request_error("model_dump", "__class__")),
        ("a key twice", given("request_file", "seed: 1\nseed: 2\n"), request_error("seed", "twice")),
        (
            "five faults at once",
            whole(seed=-1, steps=0, mode="x", expression="y", guidance={"expression": -1}),
            request_error("seed", "steps", "mode", "expression", "guidance.expression"),
        ),
        *(
            (f"seed {v!r}", asking(seed=v), request_error("seed"))
            for v in (-1, 2**32, 1.5, NAN, "x", None, [1], 10**400)
        ),
        ("the largest seed", asking(seed=2**32 - 1), FINE),
        *((f"steps {v!r}", asking(steps=v), request_error("steps")) for v in (0, -1, 1001, 2.5, "x", INF)),
        *(
            (f"guidance {v!r}", asking(guidance={"expression": v}), request_error("guidance.expression"))
            for v in (-1, 31, NAN, INF, "x", [1])
        ),
        ("guidance is a number", asking(guidance=3), request_error("guidance")),
        ("an unknown rule of guidance", asking(guidance={"rule": "both"}), request_error("guidance.rule")),
        *((f"region {v!r}", asking(region=v), request_error("region")) for v in ODD),
        ("a region of no kind", asking(region={"ids": ["SPOT01-1"]}), request_error("region")),
        ("a region of an unknown kind", asking(region={"kind": "circle"}), request_error("region", "'circle'")),
        ("no spot", asking(region={"kind": "spots", "ids": []}), request_error("region.spots.ids")),
        ("spots are a word", asking(region={"kind": "spots", "ids": "SPOT01-1"}), request_error("region.spots.ids")),
        ("spots are numbers", asking(region={"kind": "spots", "ids": [1]}), request_error("region.spots.ids.0")),
        (
            "a spot nobody knows",
            asking(region={"kind": "spots", "ids": ["SPOT01-1", "X"]}),
            request_error("region.ids", "X", "its ids look like 'SPOT00-1'"),
        ),
        (
            "ten thousand spots nobody knows",
            asking(region={"kind": "spots", "ids": [f"X{i}" for i in range(10_000)]}),
            request_error("and 9995 more"),
        ),
        ("a spot that is a path", asking(region={"kind": "spots", "ids": ["../../x"]}), request_error("../../x")),
        ("a spot of a megabyte", asking(region={"kind": "spots", "ids": ["S" * 1_000_000]}), request_error("SSS...")),
        *(
            (f"a sample of {v!r}", asking(region={"kind": "sample", "count": v}), request_error("region.sample.count"))
            for v in (0, -5, 1.5, NAN, "x")
        ),
        (
            "a sample larger than the section",
            asking(region={"kind": "sample", "count": 31}),
            request_error("31 spots were asked for, the section has 30"),
        ),
        ("a sample of 10^30", asking(region={"kind": "sample", "count": 10**30}), request_error("region")),
        ("no ring", asking(region={"kind": "polygons", "rings": []}), request_error("region.polygons.rings")),
        ("an empty ring", asking(region={"kind": "polygons", "rings": [[]]}), NOBODY),
        (
            "a ring of nan",
            asking(region={"kind": "polygons", "rings": [[[NAN, NAN]] * 4]}),
            request_error("region.polygons.rings", "finite"),
        ),
        (
            "a ring of infinity",
            asking(region={"kind": "polygons", "rings": [[[0, 0], [INF, 0], [1, 1]]]}),
            request_error("region.polygons.rings", "finite"),
        ),
        (
            "a ring of 1e308",
            asking(
                region={
                    "kind": "polygons",
                    "rings": [[[-1e308, -1e308], [1e308, -1e308], [1e308, 1e308], [-1e308, 1e308]]],
                }
            ),
            EVERYTHING,
        ),
        (
            "a ring of three coordinates",
            asking(region={"kind": "polygons", "rings": [[[0, 0, 0]] * 3]}),
            request_error("region.polygons.rings"),
        ),
        (
            "a ring of words",
            asking(region={"kind": "polygons", "rings": [["ab", "cd", "ef"]]}),
            request_error("region.polygons.rings"),
        ),
        ("morphology of a spot", asking(morphology="SPOT03-1"), FINE),
        *(
            (f"morphology {v!r}", asking(morphology=v), request_error("morphology"))
            for v in ("", "X", "OWN", "../x", None, 7)
        ),
        *((f"expression {v!r}", asking(expression=v), request_error("expression")) for v in ("", "Own", None, 7)),
        *((f"mode {v!r}", asking(mode=v), request_error("mode")) for v in ("", "Spots", None, 7)),
        *((f"checkpoint {v!r}", asking(checkpoint=v), request_error("checkpoint")) for v in (None, 7, ["demo"])),
        *(
            (f"allow_gene_mismatch {v!r}", asking(allow_gene_mismatch=v), request_error("allow_gene_mismatch"))
            for v in ("perhaps", 2, None)
        ),
        *((f"edits {v!r}", asking(edits=v), request_error("edits")) for v in (None, "x", {"a": 1}, [None], [[]])),
        ("section is a number", asking(section=7), request_error("section")),
        ("a billion laughs", given("request_file", LAUGHS), request_error("aliases")),
        (
            "a tag that runs a command",
            given("request_file", 'seed: !!python/object/apply:os.system ["touch pwned"]'),
            UNSAFE,
        ),
        ("nested a hundred thousand deep", given("request_file", "{a: " * 100_000), request_error("nested")),
        ("random bytes", given("request_file", bytes(range(128, 256))), request_error("cannot be read")),
        ("both morphology and expression null", asking(morphology="null", expression="null"), FINE),
        ("shuffled expression of one spot alone", asking(expression="shuffled"), FINE),
    ],
)

CASES = [*EDITS, *NAMED, *REQUESTS]
