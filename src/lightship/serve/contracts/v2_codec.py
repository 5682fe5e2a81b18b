"""V2 inference requests and answers as bytes: JSON, and JSON followed by binary tensors.

JSON numbers go from the text into a buffer by simdjson, without a Python object each: for a small model the numbers
cost more than the model. What it has parsed is read and checked in ``v2_reader``.
The parser cannot be used again while a view of its document lives; see ``_parse``.
A client says the same about its tensors each time, so what was read once is kept: in the binary form for the whole
text, which holds no values (``_Layout``); in JSON for the text around the values (``_Frame``).
Sources: open-inference-protocol, inference_rest.md and extensions/binary_data; Triton, extension_binary_data.md.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np
import simdjson

from lightship.errors import InvalidInput, InvalidTensor, LightshipError, TooLarge, UnsupportedMedia
from lightship.serve.contracts.v2_reader import (
    INTEGERS,
    RequestReader,
    Slice,
    V2Request,
    Wanted,
    binary_tensor,
    number_bytes,
)
from lightship.serve.http import Response
from lightship.serve.tensors import ITEM_BYTES, PackedTensor, pack_bytes, unpack
from lightship.types import DTYPES, TensorSpec

Buffer = bytes | memoryview

__all__ = ["V2Codec", "V2Request", "Wanted", "is_text"]

_LENGTH_HEADER = "inference-header-content-length"
_JSON, _BINARY = "application/json", "application/octet-stream"
_JSON_BYTES_A_VALUE = 16  # on average, of an answer
_KEPT_PARSER_BYTES = 1 << 20  # a parser keeps some 13 times the bytes of its largest document
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_VALUES = "values"  # stands where they will be
_COPIED_BYTES = 16 * 1024  # so few are copied in less time than a view of them is made and given up
_REMEMBERED_TEXTS = 256
_REMEMBERED_BYTES = 4_096  # of one text
# JSON is UTF-8 (RFC 8259): what says that it is something else would be misread.
_OTHER_CHARSET = re.compile(r"charset[ \t]*=(?![ \t]*\"?(utf-?8|us-ascii)\"?[ \t]*(;|$))", re.IGNORECASE)
_DATA = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*\[')
_FLOATS = {"FP32", "FP64"}
_NUMBERS = INTEGERS | _FLOATS
_FORMATS: dict[str, Any] = {name: np.dtype(DTYPES[name]).char for name in (*_NUMBERS, "BOOL")}


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a text says whose tensors are all in the binary part: everything but their bytes.

    Attributes:
        plain: name, dtype and shape of the one tensor, if that is one of numbers.
    """

    wanted: tuple[Wanted, ...]
    timeout_us: int | None
    slices: tuple[Slice, ...]
    size: int
    plain: tuple[str, str, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, request: V2Request, slices: tuple[Slice, ...], size: int) -> _Layout:
        """Return the layout of a request that was read; ``size``: of its binary part."""
        first = slices[0]
        plain = (first.name, first.dtype, first.shape) if len(slices) == 1 and first.dtype in _NUMBERS else None
        return cls(request.wanted, request.timeout_us, slices, size, plain)

    def request(self, tail: Buffer) -> V2Request:
        """Return the request with these bytes, as many as ``size``, checked."""
        if self.plain is not None:  # its bytes are its values, whatever they are
            name, dtype, shape = self.plain
            return V2Request(None, (PackedTensor(name, dtype, shape, tail),), self.wanted, self.timeout_us)
        inputs = tuple([binary_tensor(piece, tail[piece.start : piece.stop]) for piece in self.slices])
        return V2Request(None, inputs, self.wanted, self.timeout_us)


@dataclass(frozen=True, slots=True)
class _Frame:
    """The text around the flat list of numbers of the one input, with its brackets, and what it says.

    JSON has no context: in a text that was valid, one list may stand in the place of another. So a text with this start
    and this end is the same request with other numbers, if what lies between is one list of numbers.
    """

    start: bytes
    end: bytes
    id: str | None
    wanted: tuple[Wanted, ...]
    timeout_us: int | None
    spec: TensorSpec
    shape: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, text: bytes, request: V2Request, spec: TensorSpec) -> _Frame | None:
        """Return the frame of a text that was read, if its numbers are in one flat list."""
        data = _DATA.search(text)
        # Nothing else in a request may have this key and a list; a text that only looks like it makes two of them.
        if data is None or _DATA.search(text, data.end()) is not None:
            return None
        start, stop = data.end() - 1, text.index(b"]", data.end()) + 1
        nested = text.find(b"[", start + 1, stop) >= 0
        if nested or start > _REMEMBERED_BYTES or len(text) - stop > _REMEMBERED_BYTES:
            return None
        shape = request.inputs[0].shape
        id_, wanted, timeout_us = request.id, request.wanted, request.timeout_us
        return cls(text[: start + 1], text[stop - 1 :], id_, wanted, timeout_us, spec, shape, math.prod(shape))

    def numbers(self, text: bytes) -> bytes | None:
        """Return what stands in the place of the list, from "[" to "]", if the text has this start and this end."""
        start, end = self.start, self.end
        if text.startswith(start) and text.endswith(end) and text.find(b"[", len(start), len(text) - len(end)) < 0:
            return text[len(start) - 1 : len(text) - len(end) + 1]
        return None


_AnswerKey = tuple[str | None, tuple[Wanted, ...], tuple[tuple[tuple[int, ...], int], ...]]


@dataclass(frozen=True, slots=True)
class _AnswerFrame:
    """The JSON of an answer without the values that are written into it.

    Attributes:
        pieces: the text before the first output's values, between them, and after the last; an output in the binary
            part has none.
        head, headers: the whole JSON and its header, if all outputs are in the binary part.
    """

    pieces: tuple[bytes, ...]
    head: bytes | None
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, document: dict[str, object], request: V2Request, tensors: Sequence[PackedTensor]) -> _AnswerFrame:
        """Return the frame of the answers to such a request, with such tensors; ``document`` stands before them."""
        described: list[dict[str, object]] = []
        for wanted, tensor in zip(request.wanted, tensors, strict=True):
            entry: dict[str, object] = {"name": tensor.name, "datatype": tensor.dtype, "shape": tensor.shape}
            if wanted.binary:
                entry["parameters"] = {"binary_data_size": len(tensor.data)}
            else:
                entry["data"] = _VALUES
            described.append(entry)
        if request.id is not None:
            document["id"] = request.id
        start = msgspec.json.encode(document)[:-1] + b',"outputs":['
        outputs = [msgspec.json.encode(entry) for entry in described]
        if all(wanted.binary for wanted in request.wanted):
            head = start + b",".join(outputs) + b"]}"
            return cls((), head, ((_LENGTH_HEADER, str(len(head))),))
        pieces = [start]
        for index, (wanted, output) in enumerate(zip(request.wanted, outputs, strict=True)):
            # ``data`` is the last member, so its place is known, whatever the names hold.
            before, after = (output, b"") if wanted.binary else (output[: -len(_VALUES) - 3], b"}")
            pieces[-1] += (b"," if index else b"") + before
            pieces.append(after)
        pieces[-1] += b"]}"
        return cls(tuple(pieces), None, ())


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer with one output and no id that was written, and what such a one looks like again."""

    wanted: tuple[Wanted, ...]
    shape: tuple[int, ...]
    size: int
    frame: _AnswerFrame


class V2Codec:
    """Reads requests for one model and writes its answers. Not thread-safe: it keeps a parser.

    Args:
        inputs, outputs: of the model.
        model: its name and version, as answers say them.
        json_bytes: JSON of one request.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, model: tuple[str, str], json_bytes: int
    ) -> None:
        self._model = model
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._json_bytes = json_bytes
        self._parser = simdjson.Parser()
        self._layouts: dict[bytes, _Layout] = {}
        self._frame: _Frame | None = None  # of the last request in JSON
        self._answers: dict[_AnswerKey, _AnswerFrame] = {}  # of one model, so its name is not in the key
        self._answer: _Answered | None = None  # the last with one output and no id
        self._lengths: dict[str, int] = {}  # by their text

    def read(self, body: bytes, headers: Mapping[str, str]) -> V2Request:
        """Read a request.

        Raises:
            InvalidInput: the message names the field.
            TooLarge: too much JSON; the binary form has a larger limit.
            UnsupportedMedia: the content type is neither JSON nor binary tensors.
        """
        given = headers.get(_LENGTH_HEADER)
        if given is None:
            _check_media(headers)
            return self._read_text(body, b"")
        length = self._lengths.get(given)
        if length is None or length > len(body):
            length = self._length(given, len(body))
        text = body[:length]
        layout = self._layouts.get(text)
        tail = body[length:] if len(body) <= _COPIED_BYTES else memoryview(body)[length:]
        if layout is not None and layout.size == len(tail):
            return layout.request(tail)
        return self._read_text(text, tail) if text else _read_raw_form(tail, self._inputs, self._outputs)

    def _read_text(self, text: bytes, tail: Buffer) -> V2Request:
        if len(text) > self._json_bytes:
            raise TooLarge(
                f"The JSON of a request has at most {self._json_bytes} bytes (limit `json_bytes`). Got {len(text)}. "
                "Send the tensors in binary form."
            )
        framed = None if tail or self._frame is None else self._read_framed(self._frame, text)
        if framed is not None:
            return framed
        reader = RequestReader(text, tail)
        request = reader.read(self._parse(text), self._inputs, self._outputs)
        self._remember(reader, text, tail, request)
        return request

    def _length(self, given: str, most: int) -> int:
        """Return the length of the JSON part, which is 0 in the raw form; ``given``: the header that says it."""
        length = _remember(self._lengths, given, _number(given))
        if length > most:
            raise InvalidInput(
                f"The header {_LENGTH_HEADER} must be a number of bytes from 0 to that of the body ({most}). "
                f"Got {given[:40]!r}."
            )
        return length

    def _remember(self, reader: RequestReader, text: bytes, tail: Buffer, request: V2Request) -> None:
        if len(reader.slices) == len(self._inputs):
            if len(text) <= _REMEMBERED_BYTES and request.id is None:
                slices = tuple(reader.slices[spec.name] for spec in self._inputs)
                _remember(self._layouts, text, _Layout.of(request, slices, len(tail)))
        elif len(self._inputs) == 1 and self._inputs[0].dtype in _NUMBERS:
            self._frame = _Frame.of(text, request, self._inputs[0])

    def _read_framed(self, frame: _Frame, text: bytes) -> V2Request | None:
        """Read a text that differs from the last in its numbers only; None if it is not such a text, or not right."""
        numbers = frame.numbers(text)
        if numbers is None:
            return None
        spec = frame.spec
        try:
            values = number_bytes(self._parse(numbers, start=b"["), spec.dtype, frame.count, at="data")
        except LightshipError:
            return None  # read whole, it will be refused with the right words
        tensor = PackedTensor(spec.name, spec.dtype, frame.shape, values)
        return V2Request(frame.id, (tensor,), frame.wanted, frame.timeout_us)

    def write(self, request: V2Request, tensors: Sequence[PackedTensor]) -> Response:
        """Write the answer to a request: the outputs that it asked for, in that order.

        Raises:
            InvalidTensor: an output that was asked for in JSON has no JSON form: FP16, NaN, infinity, bytes that are
                not UTF-8; or it is too long for JSON.
        """
        last = self._answer
        if last is not None and last.wanted is request.wanted and request.id is None:
            tensor = tensors[0]
            if len(tensor.data) == last.size and tensor.shape == last.shape:
                frame = last.frame
                if frame.head is not None:
                    return Response(200, (frame.head, tensor.data), _BINARY, frame.headers)
                first, after = frame.pieces
                return Response(200, (b"".join((first, msgspec.json.encode(_json_values(tensor)), after)),))
        return self._write(request, tensors)

    def _write(self, request: V2Request, tensors: Sequence[PackedTensor]) -> Response:
        key = (request.id, request.wanted, tuple([(tensor.shape, len(tensor.data)) for tensor in tensors]))
        frame = self._answers.get(key) or self._new_answer(key, request, tensors)
        if frame.head is not None:
            self._remember_answer(request, tensors, frame)
            return Response(200, (frame.head, *[tensor.data for tensor in tensors]), _BINARY, frame.headers)
        self._refuse_long(request, tensors)
        self._remember_answer(request, tensors, frame)
        text, tail = [frame.pieces[0]], []
        for tensor, wanted, piece in zip(tensors, request.wanted, frame.pieces[1:], strict=True):
            if wanted.binary:
                tail.append(tensor.data)
            else:
                text.append(msgspec.json.encode(_json_values(tensor)))
            text.append(piece)
        head = b"".join(text)
        if not tail:
            return Response(200, (head,))
        return Response(200, (head, *tail), _BINARY, ((_LENGTH_HEADER, str(len(head))),))

    def _new_answer(self, key: _AnswerKey, request: V2Request, tensors: Sequence[PackedTensor]) -> _AnswerFrame:
        name, version = self._model
        frame = _AnswerFrame.of({"model_name": name, "model_version": version}, request, tensors)
        return frame if request.id is not None else _remember(self._answers, key, frame)

    def _remember_answer(self, request: V2Request, tensors: Sequence[PackedTensor], frame: _AnswerFrame) -> None:
        if len(tensors) == 1 and request.id is None:
            self._answer = _Answered(request.wanted, tensors[0].shape, len(tensors[0].data), frame)

    def _refuse_long(self, request: V2Request, tensors: Sequence[PackedTensor]) -> None:
        """Numbers are written as text while everybody else waits, so there are only so many."""
        pairs = zip(tensors, request.wanted, strict=True)
        values = sum(math.prod(tensor.shape) for tensor, wanted in pairs if not wanted.binary)
        if values > (most := self._json_bytes // _JSON_BYTES_A_VALUE):
            raise InvalidTensor(
                f"The answer has {values} values; JSON takes at most {most} (limit `json_bytes`, {_JSON_BYTES_A_VALUE} "
                "bytes each). Ask for the outputs in binary form."
            )

    def _parse(self, text: bytes, *, start: bytes = b"{") -> Any:
        if not text.startswith(start) and text.lstrip(b" \t\r\n")[:1] != start:
            raise InvalidInput("The request must be a JSON object, without a byte order mark.")
        if len(text) <= _KEPT_PARSER_BYTES:
            try:
                return self._parser.parse(text)
            except ValueError as exc:
                raise _not_json(exc) from None
            except RuntimeError:
                # A view of the last document is alive (say, in the traceback of an error under way): the parser is
                # its, we take another. simdjson has this class for integers beyond all bounds too, hence below again.
                self._parser = simdjson.Parser()
        try:
            return simdjson.Parser().parse(text)
        except (ValueError, RuntimeError) as exc:
            raise _not_json(exc) from None


def is_text(headers: Mapping[str, str]) -> bool:
    """Return whether the request with these headers is JSON alone."""
    return _LENGTH_HEADER not in headers


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    if len(known) >= _REMEMBERED_TEXTS:
        known.clear()
    known[key] = value
    return value


def _not_json(error: Exception) -> InvalidInput:
    code = str(error).partition(":")[0]
    return InvalidInput(f"The request is not valid JSON{f' ({code})' if code.isupper() else ''}.")


def _check_media(headers: Mapping[str, str]) -> None:
    given = headers.get("content-type", _JSON)
    if given == _JSON:
        return
    media, _, parameters = given.partition(";")
    if media.strip().lower() != _JSON or _OTHER_CHARSET.search(parameters):
        raise UnsupportedMedia(
            f"The content type must be {_JSON} (in UTF-8), or {_BINARY} with the header {_LENGTH_HEADER}. "
            f"Got {given[:80]!r}."
        )


def _number(given: str) -> int:
    """Return the number in a header, or a larger one than any body has."""
    return int(given) if given.isascii() and given.isdigit() and len(given) <= 19 else sys.maxsize


def _read_raw_form(tail: Buffer, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> V2Request:
    """Read a body that is the data of the one input and nothing else; its outputs come back in binary form."""
    free = [dim for dim in inputs[0].shape if not isinstance(dim, int)]
    if len(inputs) != 1 or len(free) > 1:
        raise InvalidInput(
            f"The header {_LENGTH_HEADER} may be 0 only for a model with one input and at most one free dimension."
        )
    spec = inputs[0]
    wanted = tuple(Wanted(output.name, binary=True) for output in outputs)
    if spec.dtype == "BYTES":
        shape = (1,) * len(spec.shape)
        return V2Request(None, (PackedTensor(spec.name, "BYTES", shape, pack_bytes([bytes(tail)])),), wanted)
    fixed = math.prod(dim for dim in spec.shape if isinstance(dim, int)) * ITEM_BYTES[spec.dtype]
    count, rest = divmod(len(tail), fixed) if fixed else (0, 1)
    if rest or count < 1 or (not free and count != 1):
        raise InvalidTensor(
            f"The body must hold the data of {spec.name!r}, a multiple of {fixed} bytes. Got {len(tail)}."
        )
    shape = tuple(dim if isinstance(dim, int) else count for dim in spec.shape)
    return V2Request(None, (PackedTensor(spec.name, spec.dtype, shape, tail),), wanted)


def _json_values(tensor: PackedTensor) -> list[Any]:
    """Return a tensor's values, flat, for JSON."""
    if tensor.dtype == "FP16":
        raise InvalidTensor(f"The output {tensor.name!r} is FP16, which has no JSON form. Ask for it in binary form.")
    if tensor.dtype == "BYTES":
        try:
            return [element.decode() for element in unpack(tensor).ravel().tolist()]
        except UnicodeDecodeError:
            raise InvalidTensor(f"The output {tensor.name!r} is not UTF-8 text. Ask for it in binary form.") from None
    values = memoryview(tensor.data).cast(_FORMATS[tensor.dtype]).tolist()
    # The sum is finite if all are; if it is not, one of them need not be the reason.
    if tensor.dtype in _FLOATS and not math.isfinite(sum(values)) and not all(map(math.isfinite, values)):
        raise InvalidTensor(
            f"The output {tensor.name!r} holds NaN or infinity, which JSON cannot say. Ask for it in binary form "
            "(parameters.binary_data)."
        )
    return values
