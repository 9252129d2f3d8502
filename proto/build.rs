//! Compiles the .proto files with protox (no protoc needed) into `OUT_DIR`.

mod gates;

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    let files = [
        "stockade/v1/plugins.proto",
        "stockade/v1/tools.proto",
        "stockade/v1/admin.proto",
        "stockade/v1/events.proto",
        "stockade/v1/extensions.proto",
        "stockade/v1/hosting.proto",
        "stockade/v1/data.proto",
        "stockade/v1/workspaces.proto",
        "stockade/v1/observability.proto",
        "stockade/worker/v1/worker.proto",
        "stockade/host/v1/host.proto",
        "stockade/launch/v1/launch.proto",
    ];
    let set = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let public = protox::prost_reflect::prost_types::FileDescriptorSet {
        file: set
            .file
            .iter()
            .filter(|f| !f.package().starts_with("stockade.launch"))
            .cloned()
            .collect(),
    };
    fs::write(out.join("descriptors.bin"), public.encode_to_vec())?;
    fs::write(out.join("gates.rs"), gates::generate(&set))?;
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .build_transport(false)
        .codec_path("crate::gate::GatedCodec")
        .bytes(".")
        .compile_fds(set)?;
    println!("cargo:rerun-if-changed=stockade");
    println!("cargo:rerun-if-changed=gates.rs");
    Ok(())
}
