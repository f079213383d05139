//! A bundle: inputs checked against the contract, run, and read chunk by chunk through the cache.

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_void, CStr, CString};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;

use crate::ffi;
use crate::json::Json;

/// What was wrong: with the bundle, with onnxruntime, or with what a caller gave.
#[derive(Debug)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

pub fn error<T>(text: impl Into<String>) -> Result<T, Error> {
    Err(Error(text.into()))
}

/// Numbers in C order.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    U8(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<i64>,
    pub data: Data,
}

pub type Tensors = BTreeMap<String, Tensor>;

/// An input or output; an axis without a name has a fixed size.
#[derive(Clone, Debug)]
pub struct Spec {
    pub name: String,
    pub axes: Vec<Option<String>>,
}

impl Spec {
    pub fn axis(&self, name: &str) -> Option<usize> {
        self.axes
            .iter()
            .position(|axis| axis.as_deref() == Some(name))
    }
}

/// A model that takes what its contract allows.
pub struct Bundle {
    // The C functions write their messages into it, whoever else holds a reference.
    raw: UnsafeCell<Box<ffi::Bundle>>,
    /// The inputs that a caller gives: neither a past nor the mask.
    pub inputs: Vec<Spec>,
    pub outputs: Vec<Spec>,
}

impl Bundle {
    /// `library` is libonnxruntime, by path or as the loader finds it.
    pub fn load(library: &str, folder: &Path) -> Result<Bundle, Error> {
        let folder = folder
            .to_str()
            .ok_or_else(|| Error("the folder's name is no UTF-8".into()))?;
        let (library, folder) = (text_of(library)?, text_of(folder)?);
        let mut raw = Box::<ffi::Bundle>::new_uninit();
        // SAFETY: bundle_load clears all of it before anything else.
        let (loaded, raw) = unsafe {
            let loaded = ffi::bundle_load(raw.as_mut_ptr(), library.as_ptr(), folder.as_ptr());
            (loaded, raw.assume_init())
        };
        let specs = |specs: &[ffi::Spec], all: bool| -> Vec<Spec> {
            let given = specs
                .iter()
                .filter(|spec| all || unsafe { ffi::is_given(*spec) });
            given.map(spec_of).collect()
        };
        let inputs = specs(&raw.inputs[..raw.num_inputs], false);
        let outputs = specs(&raw.outputs[..raw.num_outputs], true);
        let bundle = Bundle {
            raw: UnsafeCell::new(raw),
            inputs,
            outputs,
        };
        if loaded {
            Ok(bundle)
        } else {
            bundle.complaint()
        }
    }

    /// Of onnxruntime.
    pub fn version(&self) -> &str {
        // SAFETY: onnxruntime's text lives as long as the library is loaded, which is for good.
        unsafe { CStr::from_ptr(self.raw().version) }
            .to_str()
            .unwrap_or("?")
    }

    pub fn max_seq_len(&self) -> i64 {
        self.raw().max_seq_len
    }

    /// The document goldens.json.
    pub fn goldens(&self) -> Json<'_> {
        // SAFETY: It lives as long as the bundle.
        Json(unsafe { &*self.raw().goldens })
    }

    /// Every output but the cache.
    pub fn run(&self, inputs: &Tensors) -> Result<Tensors, Error> {
        self.stream().read(inputs)
    }

    pub fn stream(&self) -> Stream<'_> {
        let empty = ffi::Stream {
            length: 0,
            past: [ptr::null_mut(); ffi::MOST_TENSORS],
        };
        Stream {
            bundle: self,
            raw: Box::new(empty),
        }
    }

    fn raw(&self) -> &ffi::Bundle {
        // SAFETY: Nothing writes while this borrow is used: a Bundle is not Sync.
        unsafe { &*self.raw.get() }
    }

    fn pointer(&self) -> *mut ffi::Bundle {
        // SAFETY: As in `raw`.
        unsafe { &mut **self.raw.get() }
    }

    fn complaint<T>(&self) -> Result<T, Error> {
        // SAFETY: The C functions end their message with a zero.
        let said = unsafe { CStr::from_ptr(self.raw().error.as_ptr()) };
        error(said.to_string_lossy())
    }

    fn tensor(&self, value: *mut c_void) -> Result<Tensor, Error> {
        let mut array = MaybeUninit::<ffi::Array>::zeroed();
        // SAFETY: All zeros are an Array; bundle_view fills it where it succeeds.
        let array = unsafe {
            if !ffi::bundle_view(self.pointer(), value, array.as_mut_ptr()) {
                return self.complaint();
            }
            array.assume_init()
        };
        let shape = array.dims[..array.rank].to_vec();
        let count = shape.iter().product::<i64>() as usize;
        // SAFETY: onnxruntime's memory holds as many numbers of that type as the shape says.
        let data = unsafe {
            match array.element {
                ffi::FLOAT => Data::F32(copied(array.data, count)),
                ffi::DOUBLE => Data::F64(copied(array.data, count)),
                ffi::INT64 => Data::I64(copied(array.data, count)),
                ffi::UINT8 => Data::U8(copied(array.data, count)),
                other => return error(format!("an output of type {other}, unknown here")),
            }
        };
        Ok(Tensor { shape, data })
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // SAFETY: Streams borrow the bundle, so none is left.
        unsafe { ffi::bundle_free(self.pointer()) }
    }
}

/// A sequence that is read chunk by chunk.
pub struct Stream<'a> {
    bundle: &'a Bundle,
    raw: Box<ffi::Stream>,
}

impl Stream<'_> {
    /// How many positions were read.
    pub fn length(&self) -> i64 {
        self.raw.length
    }

    /// Read the next positions. Where it fails, the stream is as it was.
    pub fn read(&mut self, inputs: &Tensors) -> Result<Tensors, Error> {
        let bundle = self.bundle;
        let mut arrays = Vec::new();
        for spec in &bundle.inputs {
            let tensor = inputs.get(&spec.name);
            let tensor = tensor.ok_or_else(|| Error(format!("no input {}", spec.name)))?;
            arrays.push(array_of(tensor)?);
        }
        if let Some(name) = inputs
            .keys()
            .find(|name| bundle.inputs.iter().all(|s| s.name != **name))
        {
            return error(format!("there is no input {name}"));
        }
        let mut values = [ptr::null_mut(); ffi::MOST_TENSORS];
        // SAFETY: One array for each input that is given, in their order; `inputs` outlives it.
        let is_read = unsafe {
            let stream: *mut ffi::Stream = &mut *self.raw;
            ffi::stream_read(
                bundle.pointer(),
                stream,
                arrays.as_ptr(),
                values.as_mut_ptr(),
            )
        };
        if !is_read {
            return bundle.complaint();
        }
        let found = bundle
            .outputs
            .iter()
            .zip(values)
            .filter(|(_, value)| !value.is_null());
        let outputs = found
            .map(|(spec, value)| Ok((spec.name.clone(), bundle.tensor(value)?)))
            .collect();
        // SAFETY: They are onnxruntime's, and were copied.
        unsafe { ffi::bundle_release(bundle.pointer(), values.as_mut_ptr()) };
        outputs
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        // SAFETY: Its values are its own.
        unsafe { ffi::stream_free(self.bundle.pointer(), &mut *self.raw) }
    }
}

fn array_of(tensor: &Tensor) -> Result<ffi::Array, Error> {
    let (element, data, count) = match &tensor.data {
        Data::F32(values) => (ffi::FLOAT, values.as_ptr().cast::<c_void>(), values.len()),
        Data::F64(values) => (ffi::DOUBLE, values.as_ptr().cast(), values.len()),
        Data::I64(values) => (ffi::INT64, values.as_ptr().cast(), values.len()),
        Data::U8(values) => (ffi::UINT8, values.as_ptr().cast(), values.len()),
    };
    if tensor.shape.len() > ffi::MOST_AXES {
        return error(format!(
            "{} axes, expected at most {}",
            tensor.shape.len(),
            ffi::MOST_AXES
        ));
    }
    if tensor.shape.iter().product::<i64>() != count as i64 {
        return error(format!("{count} numbers for the shape {:?}", tensor.shape));
    }
    let mut dims = [0; ffi::MOST_AXES];
    dims[..tensor.shape.len()].copy_from_slice(&tensor.shape);
    // The C functions read inputs only.
    Ok(ffi::Array {
        element,
        rank: tensor.shape.len(),
        dims,
        data: data.cast_mut(),
    })
}

/// SAFETY: `data` holds `count` values of T.
unsafe fn copied<T: Clone>(data: *const c_void, count: usize) -> Vec<T> {
    if count == 0 {
        return Vec::new();
    }
    unsafe { std::slice::from_raw_parts(data.cast::<T>(), count) }.to_vec()
}

fn spec_of(raw: &ffi::Spec) -> Spec {
    let axes = raw.axes[..raw.rank].iter();
    Spec {
        name: string_of(raw.name).unwrap_or_default(),
        axes: axes.map(|&name| string_of(name)).collect(),
    }
}

fn string_of(text: *const c_char) -> Option<String> {
    // SAFETY: The C client's texts end with a zero.
    (!text.is_null()).then(|| {
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    })
}

fn text_of(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error(format!("{text:?} holds a zero byte")))
}
