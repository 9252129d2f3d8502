"""What Python calls are compared against: a stock grpcio server over a unix
socket, doing the same work: decode, call a function, encode.

    direct.py SOCKET GENERATED    (GENERATED: a folder with stockade/v1/*_pb2.py)
"""

import json
import sys
from concurrent import futures

import grpc

sys.path.insert(0, sys.argv[2])
from stockade.v1 import tools_pb2, tools_pb2_grpc


def ping(text):
    return {"text": text}


def size(data):
    return len(data)


class Tools(tools_pb2_grpc.ToolsServicer):
    def Call(self, request, context):
        args = json.loads(request.args) if request.args else {}
        for attachment in request.attachments:
            args[attachment.name] = attachment.data
        result = {"ping": ping, "size": size}[request.tool](**args)
        return tools_pb2.CallResponse(
            plugin=request.plugin, tool=request.tool, result=json.dumps(result).encode()
        )


server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=4),
    options=[("grpc.max_receive_message_length", 64 << 20)],
)
tools_pb2_grpc.add_ToolsServicer_to_server(Tools(), server)
server.add_insecure_port(f"unix:{sys.argv[1]}")
server.start()
server.wait_for_termination()
