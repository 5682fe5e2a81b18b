"""The graph behind a lean FastAPI on uvicorn: no models of the body, orjson, the engine called in the handler.

Started by `peers.py` in an environment of its own. Calling the engine in the handler blocks the loop, which is the
quickest way on one core; a thread pool costs more than it gives there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

sys.path.insert(0, str(Path(__file__).parents[1]))
from floor import bare_session

RAW = os.environ["PEER_WIRE"] == "binary"
session = bare_session(Path(os.environ["PEER_GRAPH"]).read_bytes())
shapes = {
    one.name: [1, *(-1 if isinstance(size, str) else size for size in one.shape[1:])] for one in session.get_inputs()
}
app = FastAPI()


@app.post("/inference")
async def inference(request: Request) -> Response:
    """Answer one row."""
    body = await request.body()
    if RAW:
        ((name, shape),) = shapes.items()
        (output,) = session.run(None, {name: np.frombuffer(body, np.float32).reshape(shape)})
        return Response(output.tobytes(), media_type="application/octet-stream")
    feeds = {
        name: np.array(values, np.float32 if name == "image" else np.int64).reshape(shapes[name])
        for name, values in orjson.loads(body).items()
    }
    (output,) = session.run(None, feeds)
    return Response(orjson.dumps({"data": output[0]}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="error", access_log=False)
