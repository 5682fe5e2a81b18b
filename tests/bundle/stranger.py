"""A stranger's reader of the bundle format: ``python stranger.py FOLDER TRUSTED.pem...``.

Written from docs/bundle-format.md alone, with the standard library and Ed25519 from ``cryptography``; it imports
nothing of Lightship and does not follow its style: short and flat is the point. Prints ``ok <name of the bundle>`` and
exits 0, or prints ``refused: <why>`` and exits 1.
"""

# ruff: noqa: D103, PTH118, PTH123, PTH208, SIM905, T201

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import sys
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

HEX = re.compile("[0-9a-f]{64}")
DIGEST = re.compile("sha256:[0-9a-f]{64}")
NAME = re.compile("[a-z0-9][a-z0-9._-]{0,63}")
RELEASE_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PART = re.compile("[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})")
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,19})(\.[0-9]{1,22})?(e[+-][0-9]{2,3})?")
DECIMAL = re.compile(r"(0|[1-9][0-9]{0,15})(\.[0-9]{1,32})?(e-?[0-9]{1,2})?")
EVIDENCE_FILE = re.compile(r"evidence/[a-z0-9][a-z0-9._-]{0,63}-[0-9a-f]{12}\.json")
DTYPES = "BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 BYTES".split()
BIG = 2**53 - 1


class Refused(Exception):
    pass


def need(condition, why):
    if not condition:
        raise Refused(why)


# --- JSON ---------------------------------------------------------------------------------------------------------


def parse(data, what, limit, floats):
    def pairs(items):
        need(len({key for key, _ in items}) == len(items), f"{what}: a key twice")
        return dict(items)

    def no(text):
        raise Refused(f"{what}: number {text}")

    need(len(data) <= limit, f"{what}: too long")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_float=float if floats else no,
            parse_constant=no,
        )
    except (ValueError, RecursionError) as exc:
        raise Refused(f"{what}: not JSON: {exc}") from exc
    check_values(value, what, 1)
    return value


def check_values(value, what, depth):
    if isinstance(value, (dict, list)):
        need(depth <= 32, f"{what}: too deep")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            check_values(item, what, depth + 1)
    elif isinstance(value, str):
        need(not re.search("[\ud800-\udfff]", value), f"{what}: half a surrogate pair")
    elif type(value) is int:
        need(-BIG <= value <= BIG, f"{what}: integer too large")
    elif type(value) is float:
        need(abs(value) != float("inf"), f"{what}: number too large")


def canonical(value):
    def ordered(item):
        if isinstance(item, dict):
            return {key: ordered(item[key]) for key in sorted(item, key=lambda key: key.encode("utf-16-be"))}
        return [ordered(part) for part in item] if isinstance(item, list) else item

    return json.dumps(ordered(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def keys(value, names, what):
    need(isinstance(value, dict) and sorted(value) == sorted(names.split()), f"{what}: keys must be {names}")
    return value


def items(value, low, high, what):
    need(isinstance(value, list) and low <= len(value) <= high, f"{what}: must be a list of {low} to {high}")
    return value


def obj(value, what):
    need(isinstance(value, dict), f"{what}: must be an object")
    return value


def integer(value, low, high, what):
    need(type(value) is int and low <= value <= high, f"{what}: must be an integer in [{low}, {high}]")
    return value


def match(pattern, value, what):
    need(isinstance(value, str) and pattern.fullmatch(value), f"{what}: wrong form")
    return value


def line(value, most, what):
    good = isinstance(value, str) and 1 <= len(value) <= most
    need(good and not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", value), f"{what}: must be one line")
    return value


def path_in(value, folders, what):
    parts = line(value, 255, what).split("/")
    need(2 <= len(parts) <= 16 and parts[0] in folders.split() and all(map(PART.fullmatch, parts)), f"{what}: path")
    return value


def when(value, what):
    try:
        datetime.fromisoformat(match(TIME, value, what))
    except ValueError as exc:
        raise Refused(f"{what}: no such time") from exc


# --- files --------------------------------------------------------------------------------------------------------


def walk(folder, prefix=""):
    names = os.listdir(folder)
    need(names or not prefix, f"{prefix}: empty folder")
    for name in names:
        path = prefix + name
        status = os.lstat(os.path.join(folder, name))
        if stat.S_ISDIR(status.st_mode):
            yield from walk(os.path.join(folder, name), path + "/")
        else:
            need(stat.S_ISREG(status.st_mode) and status.st_nlink == 1, f"{path}: not a plain file")
            yield path


def read(root, path):
    *folders, name = path.split("/")
    opened = [os.open(root, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for part in folders:
            opened.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[-1]))
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=opened[-1])
    except OSError as exc:
        raise Refused(f"{path}: {exc.strerror}") from exc
    finally:
        for number in opened:
            os.close(number)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def sha(data):
    return hashlib.sha256(data).hexdigest()


# --- envelope, evidence, release ------------------------------------------------------------------------------------


def unbase64(value, what):
    try:
        data = base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as exc:
        raise Refused(f"{what}: base64") from exc
    need(data and base64.b64encode(data).decode() == value, f"{what}: base64")
    return data


def open_envelope(data, kind, trusted, what):
    document = parse(data, what, 8 << 20, floats=False)
    need(canonical(document) == data, f"{what}: not canonical")
    keys(document, "payload payloadType signatures", what)
    need(document["payloadType"] == kind, f"{what}: payloadType")
    (signature,) = items(document["signatures"], 1, 1, what)
    keys(signature, "keyid sig", what)
    payload, raw = unbase64(document["payload"], what), unbase64(signature["sig"], what)
    need(signature["keyid"] in trusted, f"{what}: unknown signer {signature['keyid']}")
    name = kind.encode()
    signed = b"DSSEv1 " + str(len(name)).encode() + b" " + name + b" " + str(len(payload)).encode() + b" " + payload
    try:
        trusted[signature["keyid"]].verify(raw, signed)
    except InvalidSignature as exc:
        raise Refused(f"{what}: signature") from exc
    return parse(payload, what, 8 << 20, floats=True)


def check_release(value):
    what = "release.json"
    need(obj(value, what).get("format_version") == 1, f"{what}: format_version")
    keys(value, "bundle card created evidence format_version name policy status version", what)
    integer(value["format_version"], 1, 1, what)
    match(RELEASE_NAME, value["name"], what)
    integer(value["version"], 1, BIG, what)
    match(DIGEST, value["bundle"], what)
    if value["card"] is not None:
        match(DIGEST, value["card"], what)
    obj(value["policy"], what)
    when(value["created"], what)
    need(value["status"] in ("passed", "structural"), f"{what}: status")
    for item in items(value["evidence"], 0, 1000, what):
        keys(item, "check digest", what)
        match(NAME, item["check"], what)
        match(DIGEST, item["digest"], what)
    need(len({item["digest"][:19] for item in value["evidence"]}) == len(value["evidence"]), f"{what}: twice")


def check_statement(value, manifest, what):
    keys(value, "_type predicate predicateType subject", what)
    need(value["_type"] == "https://in-toto.io/Statement/v1", f"{what}: _type")
    predicate = keys(value["predicate"], "check created machine measured method summary verdict", what)
    check = match(NAME, predicate["check"], what)
    need(value["predicateType"] == f"urn:lightship:evidence:{check}:v1", f"{what}: predicateType")
    need(predicate["verdict"] in ("passed", "failed", "undecided", "unproven"), f"{what}: verdict")
    line(predicate["summary"], 1000, what)
    when(predicate["created"], what)
    for key in ("machine", "measured", "method"):
        obj(predicate[key], what)
    task, files = sha(canonical(manifest["task"])), {entry["sha256"] for entry in manifest["files"]}
    seen = set()
    for subject in items(value["subject"], 1, 1000, what):
        keys(subject, "digest name", what)
        name = line(subject["name"], 255, what)
        digest = match(HEX, keys(subject["digest"], "sha256", what)["sha256"], what)
        need(name not in seen, f"{what}: subject twice")
        need(digest == task if name == "task" else digest in files, f"{what}: evidence of another bundle")
        seen.add(name)
    return check, predicate["verdict"]


def check_status(release, verdicts):
    what = "release.json: policy.required"
    if release["status"] == "passed":
        for name in items(release["policy"].get("required", []), 0, 1000, what):
            need(verdicts.get(name) and set(verdicts[name]) == {"passed"}, f"{what}: {name} did not pass")


# --- the manifest ---------------------------------------------------------------------------------------------------


def check_ranges(value, what):
    numbers = {tensor["name"]: tensor["dtype"] for tensor in value["inputs"]}
    need(obj(value["values"], what), f"{what}: values")
    for name, allowed in value["values"].items():
        need(numbers.get(name) not in (None, "BOOL", "BYTES"), f"{what}: values")
        keys(allowed, "high infinite low nan", what)
        kind = int if "INT" in numbers[name] else float
        low, high = (kind(match(NUMBER, allowed[key], what)) for key in ("low", "high"))
        need(repr(low) == allowed["low"] and repr(high) == allowed["high"], f"{what}: values")
        need(low <= high, f"{what}: values")
        need(all(type(allowed[key]) is bool for key in ("nan", "infinite")), f"{what}: values")


def check_interface(value, version):
    what = "bundle.json: interface"
    keys(value, "inputs outputs proven" + (" values" if version > 1 else ""), what)
    free = set()
    for side in ("inputs", "outputs"):
        tensors = items(value[side], 1, 256, what)
        for tensor in tensors:
            keys(tensor, "dtype name shape", what)
            line(tensor["name"], 255, what)
            need(tensor["dtype"] in DTYPES, f"{what}: dtype")
            for dim in items(tensor["shape"], 0, 16, what):
                if isinstance(dim, str):
                    free.add(line(dim, 64, what))
                else:
                    integer(dim, 1, 2**31 - 1, what)
        need(len({tensor["name"] for tensor in tensors}) == len(tensors), f"{what}: name twice")
    for name, bounds in obj(value["proven"], what).items():
        low, high = items(bounds, 2, 2, what)
        need(name in free, f"{what}: proven")
        integer(high, integer(low, 1, 2**31 - 1, what), 2**31 - 1, what)
    if version > 1:
        check_ranges(value, what)
    return {tensor["name"] for tensor in value["outputs"]}


def check_manifest(value):
    what = "bundle.json"
    need(obj(value, what).get("format_version") in (1, 2), f"{what}: format_version")
    keys(value, "default files format_version golden interface lineage task variants", what)
    version = integer(value["format_version"], 1, 2, what)
    task = keys(value["task"], "codec_version config name", what)
    match(NAME, task["name"], what)
    integer(task["codec_version"], 1, 10**6, what)
    obj(task["config"], what)
    obj(value["lineage"], what)
    outputs = check_interface(value["interface"], version)
    used = set()
    for variant in items(value["variants"], 1, 64, what):
        keys(variant, "engine files graph name options precision", what)
        for key in ("name", "engine", "precision"):
            match(NAME, variant[key], what)
        used.add(path_in(variant["graph"], "variants", what))
        files = [path_in(path, "variants assets", what) for path in items(variant["files"], 0, 10_000, what)]
        need(files == sorted(set(files) - {variant["graph"]}), f"{what}: files of a variant")
        used.update(files)
        options = obj(variant["options"], what)
        need(len(options) <= 64 and all(type(x) in (int, str, bool) for x in options.values()), f"{what}: options")
    names = [variant["name"] for variant in value["variants"]]
    need(names == sorted(set(names)) and {"reference", value["default"]} <= set(names), f"{what}: variants")
    used |= check_golden(value["golden"], names, outputs)
    files = items(value["files"], 1, 10_000, what)
    for entry in files:
        keys(entry, "path sha256 size", what)
        path_in(entry["path"], "variants assets golden", what)
        match(HEX, entry["sha256"], what)
        integer(entry["size"], 0, 2**40, what)
    paths = [entry["path"] for entry in files]
    need(paths == sorted(set(paths)), f"{what}: files are not sorted")
    need(used <= set(paths), f"{what}: a path that is not listed")
    need(set(paths) <= used | set(texts(task["config"])), f"{what}: a file that nothing uses")
    check_tree(paths)


def texts(value):
    if isinstance(value, str):
        return [value] if value.startswith("assets/") else []
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for child in children for text in texts(child)]


def check_golden(value, names, outputs):
    what = "bundle.json: golden"
    keys(value, "expected inputs", what)
    inputs = [path_in(path, "golden", what) for path in items(value["inputs"], 0, 1000, what)]
    need(len(set(inputs)) == len(inputs), f"{what}: path twice")
    need(sorted(obj(value["expected"], what)) == (names if inputs else []), f"{what}: expected")
    used = set(inputs)
    for answer in value["expected"].values():
        keys(answer, "outputs tolerance", what)
        need(len(str(answer["tolerance"])) <= 64, f"{what}: tolerance")
        match(DECIMAL, answer["tolerance"], what)
        need(obj(answer["outputs"], what) and set(answer["outputs"]) <= outputs, f"{what}: outputs")
        used |= {path_in(path, "golden", what) for path in answer["outputs"].values()}
    return used


def check_tree(paths):
    folders = {}
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts)):
            folder = "/".join(parts[:count])
            need(folders.setdefault(folder.lower(), folder) == folder, f"bundle.json: {path} differs in case only")
    lower = [path.lower() for path in paths]
    need(len(set(lower)) == len(lower) and not set(lower) & set(folders), "bundle.json: paths collide")


# --- all of it ------------------------------------------------------------------------------------------------------


def verify(root, pems):
    trusted = {}
    for pem in pems:
        with open(pem, "rb") as file:
            key = load_pem_public_key(file.read())
        trusted["ed25519:" + sha(key.public_bytes_raw())[:32]] = key
    present = set(walk(root))

    release = open_envelope(
        read(root, "release.json"), "application/vnd.lightship.release+json", trusted, "release.json"
    )
    check_release(release)
    data = read(root, "bundle.json")
    need("sha256:" + sha(data) == release["bundle"], "bundle.json: digest")
    manifest = parse(data, "bundle.json", 4 << 20, floats=False)
    check_manifest(manifest)
    need(canonical(manifest) == data, "bundle.json: not canonical")

    listed = {f"evidence/{e['check']}-{e['digest'][7:19]}.json": e for e in release["evidence"]}
    required = {"bundle.json", "release.json", *listed, *(entry["path"] for entry in manifest["files"])}
    if release["card"] is not None:
        required.add("card.md")
    for path in sorted(required - present):
        raise Refused(f"{path}: missing")
    added = sorted(present - required)
    for path in added:
        need(EVIDENCE_FILE.fullmatch(path), f"{path}: no part of the bundle")

    for entry in manifest["files"]:
        data = read(root, entry["path"])
        need(len(data) == entry["size"] and sha(data) == entry["sha256"], f"{entry['path']}: digest")
    if release["card"] is not None:
        need("sha256:" + sha(read(root, "card.md")) == release["card"], "card.md: digest")
    verdicts = {}
    for path in [*listed, *added]:
        data = read(root, path)
        if path in listed:
            need("sha256:" + sha(data) == listed[path]["digest"], f"{path}: digest")
        statement = open_envelope(data, "application/vnd.in-toto+json", trusted, path)
        check, verdict = check_statement(statement, manifest, path)
        if path in listed:
            verdicts.setdefault(check, []).append(verdict)
        need(path == f"evidence/{check}-{sha(data)[:12]}.json", f"{path}: wrong name")
    check_status(release, verdicts)
    return release["bundle"]


if __name__ == "__main__":
    try:
        print("ok", verify(sys.argv[1], sys.argv[2:]))
    except Refused as refusal:
        print("refused:", refusal)
        sys.exit(1)
