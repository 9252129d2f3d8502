//! What Python programs usually do works under the profile `standard`; under
//! `strict` a plain plugin does.

use serde_json::json;
use stockade_tests::{Options, environments};

const SOURCE: &str = r#"
import asyncio, concurrent.futures, multiprocessing, os, socket, subprocess, tempfile, threading
from multiprocessing import shared_memory


def square(n):
    return n * n


class Plugin:
    def pool(self):
        with multiprocessing.Pool(2) as pool:
            return pool.map(square, range(4))

    def spawned(self):
        context = multiprocessing.get_context('spawn')
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
            return list(pool.map(abs, [-1, -2]))

    def queue(self):
        queue = multiprocessing.Queue()
        child = multiprocessing.Process(target=queue.put, args=(7,))
        child.start()
        value = queue.get(timeout=20)
        child.join()
        return value

    def shared(self):
        memory = shared_memory.SharedMemory(create=True, size=1 << 20)
        try:
            memory.buf[:3] = b'abc'
            other = shared_memory.SharedMemory(memory.name)
            return bytes(other.buf[:3]).decode()
        finally:
            memory.unlink()

    def subprocess(self):
        return subprocess.run(['sh', '-c', 'echo $((6*7)); id -u'], capture_output=True, text=True, check=True).stdout.split()[0]

    def asyncio(self):
        async def main():
            left, right = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=left)
            right.sendall(b'hello\n')
            line = await reader.readline()
            process = await asyncio.create_subprocess_exec('echo', 'x', stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
            writer.close()
            return [line.decode().strip(), out.decode().strip(), await asyncio.to_thread(square, 3)]
        return asyncio.run(main())

    def files(self):
        with tempfile.NamedTemporaryFile() as file, open('kept', 'w') as kept:
            file.write(b'x')
            kept.write('y')
        return sorted(os.listdir('.'))

    def settings(self):
        os.nice(1)
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        threading.stack_size(1 << 20)
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        import locale, time
        locale.setlocale(locale.LC_ALL, 'C.UTF-8')
        time.tzset()
        return [os.cpu_count() > 0, os.path.exists('/proc/self/stat'), os.getpid() < 100]
"#;

#[tokio::test]
async fn what_programs_usually_do_works() {
    let more = "[sandbox]\nprofile = \"standard\"\n";
    let daemon = Options::new().python("usual", more, SOURCE).start().await;
    daemon.serving("usual").await;
    for (tool, result) in [
        ("pool", json!([0, 1, 4, 9])),
        ("spawned", json!([1, 2])),
        ("queue", json!(7)),
        ("shared", json!("abc")),
        ("subprocess", json!("42")),
        ("asyncio", json!(["hello", "x", 9])),
        ("settings", json!([true, true, true])),
    ] {
        let outcome = daemon.call("usual", tool, json!({})).await;
        assert!(outcome.ok, "{tool}: {outcome:?}");
        assert_eq!(outcome.result, result, "{tool}");
    }
    // The plugin's directory, where it starts, is not its to change.
    let outcome = daemon.call("usual", "files", json!({})).await;
    assert_eq!(outcome.error_type, "OSError", "{outcome:?}");
    assert!(outcome.error.contains("Read-only file system"), "{}", outcome.error);
    daemon.stop().await;
}

#[tokio::test]
async fn numpy_works_under_strict() {
    let source = "
import numpy
class Plugin:
    def solve(self):
        rng = numpy.random.default_rng(0)
        a = rng.random((200, 200))
        return float(abs(numpy.linalg.inv(a) @ a - numpy.eye(200)).max()) < 1e-6
    def start(self):
        import subprocess
        subprocess.run(['true'])
";
    let interpreter = environments("numpy2").join("bin/python").display().to_string();
    let more =
        format!("interpreter = {interpreter:?}\n[sandbox]\nprofile = \"strict\"\njit = false\n");
    let daemon = Options::new().python("numbers", &more, source).start().await;
    daemon.serving("numbers").await;
    assert_eq!(daemon.call("numbers", "solve", json!({})).await.unwrap(), true);
    let outcome = daemon.call("numbers", "start", json!({})).await;
    assert_eq!(outcome.error_type, "PermissionError", "{outcome:?}");
    daemon.stop().await;
}
