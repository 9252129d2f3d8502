"""A remote plugin over gRPC: ``stockade.worker.v1.Worker``, as local plugins speak it.

    pip install grpcio grpcio-tools
    python -m grpc_tools.protoc -I proto --python_out=target/stubs \
        --grpc_python_out=target/stubs proto/stockade/worker/v1/worker.proto
    PYTHONPATH=target/stubs python grpc_server.py 8083
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import service
from stockade.worker.v1 import worker_pb2 as wire
from stockade.worker.v1 import worker_pb2_grpc as rpc


def text(schema):
    """A schema as text."""
    return json.dumps(schema) if schema else ""


def ready():
    """The offer as messages."""
    offer = service.OFFER
    return wire.InitReady(
        tools=[
            wire.ToolSpec(
                name=tool["name"],
                description=tool["description"],
                input_schema=text(tool.get("input_schema")),
                output_schema=text(tool.get("output_schema")),
            )
            for tool in offer["tools"]
        ],
        conditions=[wire.Condition(**one) for one in offer["conditions"]],
        effects=[
            wire.Effect(
                name=one["name"],
                description=one["description"],
                default_params=json.dumps(one["default_params"]).encode(),
            )
            for one in offer["effects"]
        ],
        simulation_configs=[wire.SimulationConfig(**one) for one in offer["simulation_configs"]],
        event_handlers=[wire.EventHandler(name="events", patterns=offer["events"])],
    )


def run(invoke):
    """Runs one call; its result as JSON."""
    args = json.loads(invoke.args or b"{}")
    if invoke.kind == wire.Invoke.CONDITION:
        return service.evaluate(invoke.tool, args["context"])
    if invoke.kind == wire.Invoke.EFFECT:
        return service.apply(invoke.tool, args["context"], args["params"])
    if invoke.kind == wire.Invoke.SIMULATION_CONFIG:
        return service.configure(invoke.tool)
    if invoke.kind == wire.Invoke.EVENTS:
        for event in invoke.events.events:
            service.hear(event.name)
        return {"failed": 0}
    return service.run_tool(invoke.tool, args)


class Worker(rpc.WorkerServicer):
    """Hello, Init, then one stream of calls."""

    def check(self, context):
        """Refuses a connection that is not signed."""
        headers = dict(context.invocation_metadata())
        if not service.signed(headers.get):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the signature is missing or wrong")

    def Hello(self, request, context):
        """Agrees on the protocol."""
        self.check(context)
        return wire.HelloResponse(
            protocol_version=1, supported_versions=[1], nonce=request.nonce, sdk="remote-python/1"
        )

    def Init(self, request, context):
        """Says what there is."""
        self.check(context)
        yield wire.InitUpdate(ready=ready())

    def Calls(self, frames, context):
        """Answers one call after the other."""
        self.check(context)
        for frame in frames:
            kind = frame.WhichOneof("frame")
            if kind == "ping":
                yield wire.FromPlugin(pong=wire.Pong(id=frame.ping.id))
            elif kind == "invoke":
                yield self.answer(frame.invoke)

    def answer(self, invoke):
        """The frame that answers a call."""
        try:
            result = json.dumps(run(invoke)).encode()
        except Exception as error:
            failed = wire.Failed(
                call_id=invoke.call_id, error_type=type(error).__name__, message=str(error)
            )
            return wire.FromPlugin(failed=failed)
        return wire.FromPlugin(done=wire.Done(call_id=invoke.call_id, result=result))

    def Shutdown(self, request, context):
        """Goes on: other hosts may be served."""
        return wire.ShutdownResponse()


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8083
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    rpc.add_WorkerServicer_to_server(Worker(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()
