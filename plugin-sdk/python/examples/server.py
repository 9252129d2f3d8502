"""A FastAPI server that used to load plugins in-process, with Stockade behind it.

The routes and the answers are those of the in-process server; a plugin that
crashes, hangs or eats memory is now one failed request.

    pip install stockade fastapi uvicorn python-multipart
    uvicorn server:app --port 8000
    curl -F image=@photo.jpg -F tool=analyze localhost:8000/v1/plugins/ocr/run

``STOCKADE_SOCKET`` names the daemon's socket when it is not at its usual place.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from stockade import AsyncClient, CallFailed
from stockade.errors import Refused


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the life of the server: it keeps its connections."""
    async with AsyncClient() as client:
        app.state.stockade = client
        yield


app = FastAPI(title="Vision server", lifespan=lifespan)


class ToolRequest(BaseModel):
    """The body of a tool call."""

    tool_name: str
    args: dict[str, Any] = {}


@app.get("/v1/plugins")
async def list_plugins() -> list[dict]:
    """Every plugin with its health, the failed ones too."""
    return await app.state.stockade.plugins()


@app.get("/v1/plugins/{name}/health")
async def plugin_health(name: str) -> dict:
    """One plugin's health: 200 or 404, never anything else."""
    try:
        return await app.state.stockade.health(name)
    except Refused as refused:
        raise HTTPException(refused.status, str(refused)) from None


@app.post("/v1/plugins/{name}/tools")
async def run_tool(name: str, request: ToolRequest) -> dict:
    """Runs a tool with JSON arguments: ``ok, result, error, error_type``."""
    outcome = await app.state.stockade.call(name, request.tool_name, request.args)
    return vars(outcome)


@app.post("/v1/plugins/{name}/run")
async def run_on_image(
    name: str, image: Annotated[UploadFile, File()], tool: Annotated[str, Form()] = "analyze"
) -> JSONResponse:
    """Runs a tool on an uploaded image."""
    try:
        outcome = await app.state.stockade.run_tool(name, tool, image_bytes=await image.read())
    except CallFailed as failed:
        status = 503 if failed.retry_after is not None or not failed.delivered else 502
        content = {"error": str(failed), "error_type": failed.error_type}
        return JSONResponse(content, status)
    return JSONResponse({"result": outcome.result, "generation": outcome.generation})
