/* A Stockade plugin as a shared library: the C interface, version 1.
 *
 * The library is loaded by `stockade-library` in a confined process of its own;
 * calls, limits, health and the sandbox are those of any plugin. It exports one
 * symbol, `stockade_plugin_v1`. A whole plugin:
 *
 *   #include <stockade.h>
 *
 *   static void hello(void *plugin, stockade_call *call, const stockade_host *host) {
 *       static const char result[] = "{\"text\": \"hello\"}";
 *       host->result(call, result, sizeof result - 1);
 *   }
 *   static const stockade_tool tools[] = {
 *       {.name = "hello", .description = "Says hello", .run = hello},
 *   };
 *   static const stockade_plugin plugin = {
 *       .abi = STOCKADE_ABI, .tool_count = 1, .tools = tools,
 *   };
 *   const stockade_plugin *stockade_plugin_v1(void) { return &plugin; }
 *
 * Build:    cc -shared -fPIC -o libhello.so hello.c
 * Manifest: name = "hello"
 *           [run]
 *           library = "libhello.so"
 *
 * All text is UTF-8. What the host hands out is valid until the function that
 * got it returns; what the library hands over is copied before the call returns.
 */
#ifndef STOCKADE_H
#define STOCKADE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STOCKADE_ABI 1u

/* Bytes of the host's; `data` is NULL when there are none. */
typedef struct stockade_bytes {
    const uint8_t *data;
    size_t size;
} stockade_bytes;

/* One call of a tool, or the start of the plugin. Opaque. */
typedef struct stockade_call stockade_call;

/* What the host can do. May be called from any thread until `run` or `init`
 * returns. Later versions add functions at the end; `abi` tells. */
typedef struct stockade_host {
    uint32_t abi;
    /* The arguments: the text of a JSON object. For `init`: an object with
     * "plugin", "directory", "data_dir", "concurrency" and "models". */
    stockade_bytes (*args)(const stockade_call *call);
    /* A binary argument by its name. */
    stockade_bytes (*attachment)(const stockade_call *call, const char *name);
    /* The outcome: JSON text. The last one counts; without any it is null. */
    void (*result)(stockade_call *call, const char *json, size_t size);
    /* Bytes of the result, which names them as "attachment:NAME". Text that begins so
     * and names none is to be written with an escape: "attachment\u003a...". */
    void (*attach)(stockade_call *call, const char *name, const char *content_type,
                   const void *data, size_t size);
    /* The call (or the start) failed: a type such as "ValueError", and why. */
    void (*fail)(stockade_call *call, const char *type, const char *message);
    /* How far it is, 0 to 1. Extends the time-out of a start. */
    void (*progress)(stockade_call *call, double fraction, const char *message);
    /* One item of a streaming tool: JSON text. Waits while the client is behind;
     * 0 when nobody wants more. */
    int32_t (*emit)(stockade_call *call, const char *json, size_t size);
    /* Not 0 once nobody wants the result. Long loops ask it. */
    int32_t (*cancelled)(const stockade_call *call);
    /* A line of the plugin's log. Levels as in syslog: 3 error, 4 warning,
     * 6 info, 7 debug. */
    void (*log)(int32_t level, const char *text);
} stockade_host;

/* One tool. */
typedef struct stockade_tool {
    const char *name;
    const char *description;   /* NULL = none */
    const char *input_schema;  /* JSON Schema of the arguments; NULL = any */
    const char *output_schema; /* NULL = any */
    int32_t streams;           /* not 0: it calls `emit` */
    /* Runs on a thread of the host's; on several at once when the manifest says
     * run.concurrency > 1. `plugin` is what `init` made. */
    void (*run)(void *plugin, stockade_call *call, const stockade_host *host);
} stockade_tool;

/* What the library is. Static: it is never freed. */
typedef struct stockade_plugin {
    uint32_t abi; /* STOCKADE_ABI */
    /* Makes the plugin; NULL = nothing to do. 0 = it worked; otherwise it has
     * called `host->fail(start, …)`. */
    int32_t (*init)(stockade_call *start, const stockade_host *host, void **plugin);
    /* Before a requested stop; NULL = nothing to do. */
    void (*shutdown)(void *plugin);
    size_t tool_count;
    const stockade_tool *tools;
} stockade_plugin;

/* The one symbol that a library exports. */
const stockade_plugin *stockade_plugin_v1(void);

#ifdef __cplusplus
}
#endif
#endif
