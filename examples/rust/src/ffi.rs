//! `../c/bundle.h` and `../c/json.h`, as Rust sees them.

use std::ffi::{c_char, c_double, c_int, c_void};

pub const MOST_AXES: usize = 8;
pub const MOST_TENSORS: usize = 512;

/// What a C enumeration is on every platform that onnxruntime has.
pub type ElementType = u32;
pub const FLOAT: ElementType = 1;
pub const UINT8: ElementType = 2;
pub const INT64: ElementType = 7;
pub const DOUBLE: ElementType = 11;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Array {
    pub element: ElementType,
    pub rank: usize,
    pub dims: [i64; MOST_AXES],
    pub data: *mut c_void,
}

#[repr(C)]
pub struct Spec {
    pub name: *const c_char,
    pub element: ElementType,
    pub rank: usize,
    pub axes: [*const c_char; MOST_AXES],
    pub sizes: [i64; MOST_AXES],
    pub has_range: bool,
    pub low: c_double,
    pub high: c_double,
    pub is_mask: bool,
    pub is_adapter: bool,
    pub output: c_int,
}

#[repr(C)]
pub struct Bundle {
    pub ort: *const c_void,
    pub version: *const c_char,
    pub env: *mut c_void,
    pub session: *mut c_void,
    pub memory: *mut c_void,
    pub document: *mut Json,
    pub goldens: *mut Json,
    pub inputs: [Spec; MOST_TENSORS],
    pub outputs: [Spec; MOST_TENSORS],
    pub num_inputs: usize,
    pub num_outputs: usize,
    pub min_seq_len: i64,
    pub max_seq_len: i64,
    pub ragged: *const c_char,
    pub error: [c_char; 512],
}

#[repr(C)]
pub struct Stream {
    pub length: i64,
    pub past: [*mut c_void; MOST_TENSORS],
}

#[repr(C)]
pub struct Json {
    pub kind: u32,
    pub number: c_double,
    pub text: *mut c_char,
    pub key: *mut c_char,
    pub child: *mut Json,
    pub next: *mut Json,
}

extern "C" {
    pub fn bundle_load(bundle: *mut Bundle, library: *const c_char, folder: *const c_char) -> bool;
    pub fn bundle_free(bundle: *mut Bundle);
    pub fn bundle_release(bundle: *mut Bundle, outputs: *mut *mut c_void);
    pub fn bundle_view(bundle: *mut Bundle, value: *mut c_void, array: *mut Array) -> bool;
    pub fn stream_read(
        bundle: *mut Bundle,
        stream: *mut Stream,
        inputs: *const Array,
        outputs: *mut *mut c_void,
    ) -> bool;
    pub fn stream_free(bundle: *mut Bundle, stream: *mut Stream);
    pub fn is_given(spec: *const Spec) -> bool;
}
