//! Compiles our `.proto` files and CSI's with protox, so that no `protoc` has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=tarbox");
    println!("cargo:rerun-if-changed=csi");
    let files = ["tarbox/control/v1/control.proto", "tarbox/agent/v1/agent.proto", "csi/v1/csi.proto"];
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
