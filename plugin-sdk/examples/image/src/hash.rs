//! Hashes of how a picture looks: blurhash for previews, a DCT hash for near
//! duplicates.

use std::f64::consts::PI;

use image::{DynamicImage, imageops::FilterType};
use stockade_plugin_sdk::prelude::*;

/// A blurhash of 4 × 3 components.
pub(crate) fn blurhash(picture: &DynamicImage) -> Result<String> {
    let small = picture.thumbnail(64, 64).to_rgba8();
    let (width, height) = small.dimensions();
    blurhash::encode(4, 3, width, height, small.as_raw())
        .map_err(|error| Error::new("BadImage", format!("{error:?}")))
}

const SIDE: usize = 32;
const KEPT: usize = 8;

/// The signs of the 64 lowest frequencies against their median.
pub(crate) fn perceptual(picture: &DynamicImage) -> String {
    let side = SIDE as u32;
    let gray = picture.resize_exact(side, side, FilterType::Triangle).to_luma8();
    let value = |x: usize, y: usize| f64::from(gray.get_pixel(x as u32, y as u32).0[0]);
    let wave = |k: usize, n: usize| (PI * k as f64 * (2 * n + 1) as f64 / (2 * SIDE) as f64).cos();
    let mut frequencies = Vec::with_capacity(KEPT * KEPT);
    for v in 0..KEPT {
        for u in 0..KEPT {
            let mut sum = 0.0;
            for y in 0..SIDE {
                for x in 0..SIDE {
                    sum += value(x, y) * wave(u, x) * wave(v, y);
                }
            }
            frequencies.push(sum);
        }
    }
    // The first is the mean brightness, which says nothing of the shape.
    let mut sorted = frequencies[1..].to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let bits = frequencies.iter().fold(0u64, |bits, f| (bits << 1) | u64::from(*f > median));
    format!("{bits:016x}")
}
