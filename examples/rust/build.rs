//! Compiles the C client into a static library. ORT_INCLUDE: the folder of onnxruntime_c_api.h.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let headers = env::var("ORT_INCLUDE").expect("set ORT_INCLUDE to onnxruntime's headers");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    println!("cargo::rerun-if-env-changed=ORT_INCLUDE");
    println!("cargo::rerun-if-changed=../c");
    let mut objects = Vec::new();
    for name in ["bundle", "json"] {
        let object = format!("{out}/{name}.o");
        let source = Path::new("../c").join(name).with_extension("c");
        run(Command::new(&compiler)
            .args([
                "-std=c11",
                "-D_GNU_SOURCE",
                "-O2",
                "-fPIC",
                "-c",
                "-o",
                &object,
            ])
            .arg(format!("-I{headers}"))
            .arg(source));
        objects.push(object);
    }
    run(Command::new("ar")
        .arg("crs")
        .arg(format!("{out}/libbundle.a"))
        .args(&objects));
    println!("cargo::rustc-link-search=native={out}");
    println!("cargo::rustc-link-lib=static=bundle");
    println!("cargo::rustc-link-lib=dl");
}

fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?} failed");
}
