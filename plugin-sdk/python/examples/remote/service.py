"""What the service can do, whatever is spoken."""

import hashlib
import hmac
import os
import time

OFFER = {
    "tools": [
        {
            "name": "greet",
            "description": "Says hello to somebody",
            "input_schema": {
                "type": "object",
                "properties": {"name": {"type": "string"}},
                "required": ["name"],
            },
            "output_schema": {"type": "string"},
        },
        {"name": "heard", "description": "Names of the events that it was told of"},
    ],
    "conditions": [
        {
            "name": "can_access_area",
            "description": "May this NPC go there?",
            "required_context": ["npc_id"],
        }
    ],
    "effects": [
        {
            "name": "calm",
            "description": "Calms somebody down",
            "default_params": {"amount": 0.5},
        }
    ],
    "simulation_configs": [{"name": "pace", "description": "How fast", "priority": 50}],
    "events": ["plugin:*"],
}

_heard: list = []


def run_tool(tool, args):
    """Runs a tool."""
    if tool == "greet":
        if not args["name"]:
            raise ValueError("nobody has no name")
        return f"Hello, {args['name']}!"
    if tool == "heard":
        return _heard
    raise LookupError(f"no tool {tool}")


def evaluate(condition, context):
    """Evaluates a condition: NPC number seven may go everywhere."""
    if condition != "can_access_area":
        raise KeyError(condition)
    return context["npc_id"] == 7


def apply(effect, context, params):
    """Applies an effect."""
    if effect != "calm":
        raise KeyError(effect)
    return {"npc_id": context.get("npc_id"), "calmed_by": params["amount"]}


def configure(name):
    """A part of simulations' configuration."""
    if name != "pace":
        raise KeyError(name)
    return {"pace": "slow"}


def hear(name):
    """Hears of an event."""
    _heard.append(name)


def answer(method, request):
    """A request as HTTP and WebSocket have it: run-tool, evaluate-condition, …"""
    if method == "run-tool":
        result = run_tool(request["tool"], request["args"])
    elif method == "evaluate-condition":
        result = evaluate(request["condition_id"], request["context"])
    elif method == "apply-effect":
        result = apply(request["effect_id"], request["context"], request["params"])
    elif method == "simulation-config":
        result = configure(request["provider_id"])
    elif method == "events":
        for event in request["events"]:
            hear(event["name"])
        result = None
    else:
        raise LookupError(f"no method {method}")
    return {"result": result, "metadata": {"seen": request.get("context")}}


def signed(header, body=b""):
    """With ``SECRET`` in the environment, only who knows it is answered. ``header``
    gives a header's value or None; a connection's body is empty."""
    secret = os.environ.get("SECRET")
    if secret is None:
        return True
    timestamp, signature = header("stockade-timestamp"), header("stockade-signature")
    if not timestamp or not signature or abs(time.time() - int(timestamp)) > 300:
        return False
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return hmac.compare_digest(f"sha256={digest.hexdigest()}", signature)
