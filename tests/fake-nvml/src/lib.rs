//! A stand-in for libnvidia-ml.so.1. The environment variable FAKE_GPUS says
//! what there is: `uuid,name,GiB,major,minor` per GPU, separated by `;`.
//! `fail` makes initialisation fail, `hang` makes it hang.

#![allow(non_snake_case, missing_docs, clippy::missing_safety_doc)]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void},
    time::Duration,
};

const SUCCESS: c_int = 0;
const INVALID_ARGUMENT: c_int = 2;
const INSUFFICIENT_SIZE: c_int = 7;
const DRIVER_NOT_LOADED: c_int = 9;

struct Gpu {
    uuid: String,
    name: String,
    memory: u64,
    capability: (c_int, c_int),
}

fn gpus() -> Vec<Gpu> {
    let text = std::env::var("FAKE_GPUS").unwrap_or_default();
    text.split(';')
        .filter_map(|gpu| {
            let parts: Vec<&str> = gpu.split(',').collect();
            let [uuid, name, memory, major, minor] = parts.as_slice() else { return None };
            Some(Gpu {
                uuid: (*uuid).to_owned(),
                name: (*name).to_owned(),
                memory: memory.parse::<u64>().ok()? << 30,
                capability: (major.parse().ok()?, minor.parse().ok()?),
            })
        })
        .collect()
}

/// A device is its index, from 1.
fn with<T>(device: *mut c_void, use_it: impl FnOnce(&Gpu) -> T) -> Option<T> {
    gpus().get((device as usize).checked_sub(1)?).map(use_it)
}

unsafe fn copy(text: &str, to: *mut c_char, length: c_uint) -> c_int {
    let text = CString::new(text).unwrap_or_default();
    let bytes = text.as_bytes_with_nul();
    if bytes.len() > length as usize {
        return INSUFFICIENT_SIZE;
    }
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, bytes.len()) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c_int {
    match std::env::var("FAKE_GPUS").as_deref() {
        Ok("fail") => DRIVER_NOT_LOADED,
        Ok("hang") => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        _ => SUCCESS,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_: c_uint) -> c_int {
    nvmlInit_v2()
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c_int {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(_: c_int) -> *const c_char {
    c"fake NVML error".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_int {
    unsafe { *count = gpus().len() as c_uint };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut *mut c_void,
) -> c_int {
    if index as usize >= gpus().len() {
        return INVALID_ARGUMENT;
    }
    unsafe { *device = (index as usize + 1) as *mut c_void };
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: *mut c_void,
    uuid: *mut c_char,
    length: c_uint,
) -> c_int {
    with(device, |gpu| unsafe { copy(&gpu.uuid, uuid, length) }).unwrap_or(INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: *mut c_void,
    name: *mut c_char,
    length: c_uint,
) -> c_int {
    with(device, |gpu| unsafe { copy(&gpu.name, name, length) }).unwrap_or(INVALID_ARGUMENT)
}

#[repr(C)]
pub struct Memory {
    total: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: c_ulonglong,
    reserved: c_ulonglong,
    free: c_ulonglong,
    used: c_ulonglong,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(device: *mut c_void, info: *mut Memory) -> c_int {
    let write = |gpu: &Gpu| unsafe {
        *info = Memory { total: gpu.memory, free: gpu.memory, used: 0 };
        SUCCESS
    };
    with(device, write).unwrap_or(INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: *mut c_void,
    info: *mut MemoryV2,
) -> c_int {
    let write = |gpu: &Gpu| unsafe {
        (*info).total = gpu.memory;
        (*info).reserved = 0;
        (*info).free = gpu.memory;
        (*info).used = 0;
        SUCCESS
    };
    with(device, write).unwrap_or(INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: *mut c_void,
    major: *mut c_int,
    minor: *mut c_int,
) -> c_int {
    let write = |gpu: &Gpu| unsafe {
        (*major, *minor) = gpu.capability;
        SUCCESS
    };
    with(device, write).unwrap_or(INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(text: *mut c_char, length: c_uint) -> c_int {
    let version = unsafe { CStr::from_ptr(c"555.0".as_ptr()) };
    unsafe { copy(&version.to_string_lossy(), text, length) }
}
