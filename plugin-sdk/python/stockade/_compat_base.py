"""``app.plugins.base`` for plugins written for the original server."""


class BasePlugin:
    """The base class: a name, tools, and the hooks of the contract."""

    name = ""
    tools: dict = {}  # noqa: RUF012

    def run_tool(self, tool_name, args):
        """Calls the handler of a tool with its arguments."""
        described = self.tools.get(tool_name)
        if described is None:
            raise ValueError(f"Tool '{tool_name}' not found in plugin '{self.name}'")
        handler = described["handler"]
        if isinstance(handler, str):
            handler = getattr(self, handler)
        return handler(**args)

    def validate(self):
        """Checked after loading."""

    def on_load(self):
        """Runs after the constructor."""

    def on_unload(self):
        """Runs before a requested stop."""

    def on_reload(self):
        """A reload is a new process: ``on_load`` runs there."""


PluginInterface = BasePlugin
