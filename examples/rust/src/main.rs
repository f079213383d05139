//! `selftest LIBRARY BUNDLE` replays a bundle's golden vectors and prints one line of JSON.
//! LIBRARY is libonnxruntime.so, by path or as the loader finds it.

mod bundle;
mod ffi;
mod json;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use bundle::{error, Bundle, Data, Error, Tensor, Tensors};
use json::Json;

const CALLS: u32 = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, library, folder] = arguments.as_slice() else {
        eprintln!("usage: selftest LIBRARY BUNDLE");
        return ExitCode::from(2);
    };
    match selftest(library, Path::new(folder)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{folder}: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn selftest(library: &str, folder: &Path) -> Result<bool, Error> {
    let bundle = Bundle::load(library, folder)?;
    let goldens = bundle.goldens();
    let cases: Vec<Json> = goldens.get("cases")?.children().collect();
    let streams: Vec<Json> = goldens.get("streams")?.children().collect();
    let (mut worst, mut repeats) = (0.0, true);
    for &case in &cases {
        let inputs = read_tensors(case.get("inputs")?)?;
        let outputs = bundle.run(&inputs)?;
        repeats &= same_bits(&outputs, &bundle.run(&inputs)?);
        worst = larger(worst, error_of(&outputs, case)?);
    }
    for plan in &streams {
        let case = cases[plan.get("case")?.number() as usize];
        let inputs = read_tensors(case.get("inputs")?)?;
        let outputs = streamed(&bundle, &inputs, &plan.get("chunks")?.integers())?;
        worst = larger(worst, error_of(&outputs, case)?);
    }
    let timed = read_tensors(cases[usize::from(cases.len() > 1)].get("inputs")?)?;
    println!(
        "{{\"runtime\": \"onnxruntime {}\", \"cases\": {}, \"streams\": {}, \"refused\": {}, \
         \"error\": {:e}, \"repeats\": {}, \"ms_per_call\": {:.4}}}",
        bundle.version(),
        cases.len(),
        streams.len(),
        count_refusals(&bundle, &timed)?,
        worst,
        repeats,
        milliseconds_per_call(&bundle, &timed)?,
    );
    Ok(repeats && worst <= goldens.get("tolerance")?.number())
}

/// Feed inputs in chunks, and join the outputs.
fn streamed(bundle: &Bundle, inputs: &Tensors, chunks: &[i64]) -> Result<Tensors, Error> {
    let mut stream = bundle.stream();
    let mut joined: Tensors = Tensors::new();
    for &chunk in chunks {
        let start = stream.length();
        let mut part = Tensors::new();
        for spec in &bundle.inputs {
            let axis = spec
                .axis("seq")
                .ok_or_else(|| Error(format!("no seq in {}", spec.name)))?;
            part.insert(
                spec.name.clone(),
                slice(&inputs[&spec.name], axis, start, chunk)?,
            );
        }
        for (name, now) in stream.read(&part)? {
            let spec = bundle.outputs.iter().find(|spec| spec.name == name);
            let axis = spec.and_then(|spec| spec.axis("seq"));
            let axis = axis.ok_or_else(|| Error(format!("no seq in {name}")))?;
            let whole = match joined.remove(&name) {
                Some(before) => joined_along(&before, &now, axis)?,
                None => now,
            };
            joined.insert(name, whole);
        }
    }
    Ok(joined)
}

/// Positions [start, start + length) along an axis.
fn slice(tensor: &Tensor, axis: usize, start: i64, length: i64) -> Result<Tensor, Error> {
    let (start, length) = (start as usize, length as usize);
    let (_, positions, inner) = sizes(tensor, axis);
    fn cut<T: Copy>(all: &[T], row: usize, from: usize, count: usize) -> Vec<T> {
        all.chunks(row)
            .flat_map(|one| one[from..from + count].iter().copied())
            .collect()
    }
    let (row, from, count) = (positions * inner, start * inner, length * inner);
    if from + count > row {
        return error("the chunks are longer than the case");
    }
    let data = match &tensor.data {
        Data::F32(all) => Data::F32(cut(all, row, from, count)),
        Data::F64(all) => Data::F64(cut(all, row, from, count)),
        Data::I64(all) => Data::I64(cut(all, row, from, count)),
        Data::U8(all) => Data::U8(cut(all, row, from, count)),
    };
    let mut shape = tensor.shape.clone();
    shape[axis] = length as i64;
    Ok(Tensor { shape, data })
}

fn joined_along(one: &Tensor, other: &Tensor, axis: usize) -> Result<Tensor, Error> {
    let ((outer, first, inner), (_, second, _)) = (sizes(one, axis), sizes(other, axis));
    fn join<T: Copy>(one: &[T], other: &[T], outer: usize, a: usize, b: usize) -> Vec<T> {
        let mut all = Vec::with_capacity(one.len() + other.len());
        for row in 0..outer {
            all.extend_from_slice(&one[row * a..(row + 1) * a]);
            all.extend_from_slice(&other[row * b..(row + 1) * b]);
        }
        all
    }
    let (a, b) = (first * inner, second * inner);
    let data = match (&one.data, &other.data) {
        (Data::F32(x), Data::F32(y)) => Data::F32(join(x, y, outer, a, b)),
        (Data::F64(x), Data::F64(y)) => Data::F64(join(x, y, outer, a, b)),
        _ => return error("outputs of one name have two types"),
    };
    let mut shape = one.shape.clone();
    shape[axis] += other.shape[axis];
    Ok(Tensor { shape, data })
}

/// Numbers before an axis, of it, and behind it.
fn sizes(tensor: &Tensor, axis: usize) -> (usize, usize, usize) {
    let product = |part: &[i64]| part.iter().product::<i64>() as usize;
    let shape = &tensor.shape;
    (
        product(&shape[..axis]),
        shape[axis] as usize,
        product(&shape[axis + 1..]),
    )
}

/// The largest error, relative to each output's scale.
fn error_of(outputs: &Tensors, case: Json<'_>) -> Result<f64, Error> {
    let mut worst = 0.0;
    for stored in case.get("outputs")?.children() {
        let name = stored.key().unwrap_or_default();
        let got = outputs
            .get(name)
            .ok_or_else(|| Error(format!("no output {name}")))?;
        if got.shape != stored.get("whole_shape")?.integers() {
            return Ok(f64::INFINITY);
        }
        let (got, kept) = (numbers(got)?, numbers(&read_tensor(stored)?)?);
        let stride = stored.get("stride")?.number() as usize;
        let (mut difference, mut scale) = (0.0, 0.0_f64);
        for (index, expected) in kept.iter().enumerate() {
            difference = larger(difference, (got[index * stride] - expected).abs());
            scale = scale.max(expected.abs());
        }
        worst = larger(
            worst,
            if difference == 0.0 {
                0.0
            } else {
                difference / scale
            },
        );
    }
    Ok(worst)
}

/// Keeps NaN, which `f64::max` drops.
fn larger(worst: f64, next: f64) -> f64 {
    if next <= worst {
        worst
    } else {
        next
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f64>, Error> {
    match &tensor.data {
        Data::F32(values) => Ok(values.iter().map(|&value| f64::from(value)).collect()),
        Data::F64(values) => Ok(values.clone()),
        _ => error("an output is no floating-point tensor"),
    }
}

fn same_bits(one: &Tensors, other: &Tensors) -> bool {
    let bits = |tensor: &Tensor| match &tensor.data {
        Data::F32(values) => values
            .iter()
            .map(|value| u64::from(value.to_bits()))
            .collect(),
        Data::F64(values) => values.iter().map(|value| value.to_bits()).collect(),
        Data::I64(values) => values.iter().map(|&value| value as u64).collect(),
        Data::U8(values) => values
            .iter()
            .map(|&value| u64::from(value))
            .collect::<Vec<u64>>(),
    };
    one.len() == other.len()
        && one
            .iter()
            .all(|(name, tensor)| bits(tensor) == bits(&other[name]))
}

/// Three requests that the contract forbids: a rank, a dtype, a length. All must be refused.
fn count_refusals(bundle: &Bundle, inputs: &Tensors) -> Result<usize, Error> {
    let name = &bundle.inputs[0].name;
    let good = &inputs[name];
    let mut deeper = good.clone();
    deeper.shape.push(1);
    let count = good.shape.iter().product::<i64>() as usize;
    let bytes = Tensor {
        shape: good.shape.clone(),
        data: Data::U8(vec![0; count]),
    };
    let mut shape = good.shape.clone();
    // Without a limit, no position at all is too few.
    shape[1] = bundle.max_seq_len().checked_add(1).unwrap_or(0);
    let count = shape.iter().product::<i64>() as usize;
    let data = match good.data {
        Data::I64(_) => Data::I64(vec![0; count]),
        _ => Data::F32(vec![0.0; count]),
    };
    let longer = Tensor { shape, data };
    let bad = [deeper, bytes, longer];
    let refused = bad.iter().filter(|tensor| {
        let mut wrong = inputs.clone();
        wrong.insert(name.clone(), (*tensor).clone());
        bundle.run(&wrong).is_err()
    });
    match refused.count() {
        count if count == bad.len() => Ok(count),
        _ => error("a wrong request was not refused"),
    }
}

fn milliseconds_per_call(bundle: &Bundle, inputs: &Tensors) -> Result<f64, Error> {
    let start = Instant::now();
    for _ in 0..CALLS {
        bundle.run(inputs)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(CALLS))
}

fn read_tensors(stored: Json<'_>) -> Result<Tensors, Error> {
    let named = stored.children().map(|child| {
        let name = child.key().unwrap_or_default().to_owned();
        Ok((name, read_tensor(child)?))
    });
    named.collect()
}

/// An array of goldens.json.
fn read_tensor(stored: Json<'_>) -> Result<Tensor, Error> {
    let bytes = decode_base64(stored.get("data")?.text()?)?;
    fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
        bytes
            .chunks_exact(N)
            .map(|word| word.try_into().expect("N bytes"))
    }
    let data = match stored.get("dtype")?.text()? {
        "float32" => Data::F32(words(&bytes).map(f32::from_le_bytes).collect()),
        "float64" => Data::F64(words(&bytes).map(f64::from_le_bytes).collect()),
        "int64" => Data::I64(words(&bytes).map(i64::from_le_bytes).collect()),
        other => return error(format!("goldens.json holds {other}, unknown here")),
    };
    Ok(Tensor {
        shape: stored.get("shape")?.integers(),
        data,
    })
}

fn decode_base64(text: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for character in text.bytes().take_while(|&character| character != b'=') {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return error("goldens.json is damaged"),
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Ok(bytes)
}
