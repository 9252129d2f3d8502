/* A plugin as a shared library in C: `sums` adds up a list of numbers, `count`
 * streams them, `reverse` turns bytes around. Build it with
 *   cc -shared -fPIC -O2 -I plugin-sdk/library/include -o libsums.so sums.c */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <stockade.h>

/* Made by init, shared by all calls. */
typedef struct {
    double factor;
} sums;

static int32_t init(stockade_call *start, const stockade_host *host, void **plugin) {
    sums *made = malloc(sizeof *made);
    if (made == NULL) {
        host->fail(start, "MemoryError", "no memory");
        return 1;
    }
    made->factor = 1.0;
    host->progress(start, 1.0, "ready");
    *plugin = made;
    return 0;
}

static void finish(void *plugin) { free(plugin); }

/* The numbers of {"numbers": [1, 2.5, …]}: whatever strtod takes after '['. */
static const char *first_number(stockade_bytes args) {
    const char *place = memchr(args.data, '[', args.size);
    return place == NULL ? NULL : place + 1;
}

static void sum(void *plugin, stockade_call *call, const stockade_host *host) {
    stockade_bytes args = host->args(call);
    /* The text is not NUL-terminated: numbers end at a bracket before its end. */
    const char *place = first_number(args);
    if (place == NULL) {
        host->fail(call, "ValueError", "numbers are missing");
        return;
    }
    double total = 0;
    for (;;) {
        char *end;
        double number = strtod(place, &end);
        if (end == place) break;
        total += number;
        place = *end == ',' ? end + 1 : end;
    }
    char json[64];
    int size = snprintf(json, sizeof json, "%.15g", total * ((sums *)plugin)->factor);
    host->result(call, json, (size_t)size);
}

static void count(void *plugin, stockade_call *call, const stockade_host *host) {
    (void)plugin;
    for (int number = 1; number <= 1000 && !host->cancelled(call); number++) {
        char json[16];
        int size = snprintf(json, sizeof json, "%d", number);
        if (!host->emit(call, json, (size_t)size)) break;
        if (number == 3) break;
    }
    host->result(call, "\"done\"", 6);
}

static void reverse(void *plugin, stockade_call *call, const stockade_host *host) {
    (void)plugin;
    stockade_bytes data = host->attachment(call, "data");
    if (data.data == NULL) {
        host->fail(call, "ValueError", "data is missing");
        return;
    }
    uint8_t *turned = malloc(data.size);
    for (size_t at = 0; at < data.size; at++) turned[at] = data.data[data.size - 1 - at];
    host->attach(call, "turned", "application/octet-stream", turned, data.size);
    free(turned);
    static const char json[] = "{\"data\": \"attachment:turned\"}";
    host->result(call, json, sizeof json - 1);
    host->log(6, "turned around");
}

/* What a library does to a server that loads it itself. */
static void crash(void *plugin, stockade_call *call, const stockade_host *host) {
    (void)plugin, (void)call, (void)host;
    *(volatile int *)8 = 1;
}

static const stockade_tool tools[] = {
    {.name = "sum",
     .description = "Adds up numbers",
     .input_schema = "{\"type\": \"object\", \"required\": [\"numbers\"], \"properties\": "
                     "{\"numbers\": {\"type\": \"array\", \"items\": {\"type\": \"number\"}}}}",
     .output_schema = "{\"type\": \"number\"}",
     .run = sum},
    {.name = "count", .description = "Streams 1, 2, 3", .streams = 1, .run = count},
    {.name = "reverse",
     .description = "Turns bytes around",
     .input_schema = "{\"type\": \"object\", \"properties\": "
                     "{\"data\": {\"type\": \"string\", \"format\": \"binary\"}}}",
     .run = reverse},
    {.name = "crash", .description = "Writes to address 8", .run = crash},
};

static const stockade_plugin plugin = {
    .abi = STOCKADE_ABI,
    .init = init,
    .shutdown = finish,
    .tool_count = sizeof tools / sizeof *tools,
    .tools = tools,
};

const stockade_plugin *stockade_plugin_v1(void) { return &plugin; }
