"""A stock grpcio client over the unix socket. Its authority would be the
percent-encoded path, which HTTP/2 servers refuse: the option sets it.

    grpcio_check.py SOCKET GENERATED
"""

import json
import sys

import grpc

sys.path.insert(0, sys.argv[2])
from stockade.v1 import plugins_pb2, plugins_pb2_grpc, tools_pb2, tools_pb2_grpc

options = [("grpc.default_authority", "localhost")]
with grpc.insecure_channel(f"unix:{sys.argv[1]}", options=options) as channel:
    plugins = plugins_pb2_grpc.PluginsStub(channel)
    listed = plugins.ListPlugins(plugins_pb2.ListPluginsRequest())
    assert [plugin.name for plugin in listed.plugins] == ["good", "typed"], listed
    tools = tools_pb2_grpc.ToolsStub(channel)
    request = tools_pb2.CallRequest(
        plugin="typed", tool="greet", args=json.dumps({"name": "Ada"}).encode()
    )
    reply = tools.Call(request)
    assert json.loads(reply.result) == "Hello, Ada!", reply
    updates = list(tools.CallStream(request))
    assert updates[-1].outcome.ok, updates
    try:
        tools.Call(tools_pb2.CallRequest(plugin="nobody", tool="greet"))
        raise AssertionError("nothing was raised")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
print("ok")
