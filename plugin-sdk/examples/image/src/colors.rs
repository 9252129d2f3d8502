//! Dominant colours by median cut: the box of all colours is split where it is
//! longest, until there are enough boxes.

use image::DynamicImage;
use stockade_plugin_sdk::prelude::*;

/// A colour and how much of the picture it stands for.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Color {
    /// `#rrggbb`
    hex: String,
    /// 0 to 1
    share: f64,
}

/// Enough for the sum of a picture; more would only be slower.
const SAMPLE: u32 = 160;

/// The `count` dominant colours, most frequent first.
pub(crate) fn dominant(picture: &DynamicImage, count: usize) -> Vec<Color> {
    let pixels: Vec<[u8; 3]> =
        picture.thumbnail(SAMPLE, SAMPLE).to_rgb8().pixels().map(|pixel| pixel.0).collect();
    let total = pixels.len().max(1) as f64;
    let mut boxes = vec![pixels];
    while boxes.len() < count {
        let longest = boxes
            .iter()
            .enumerate()
            .filter(|(_, pixels)| pixels.len() > 1)
            .max_by_key(|(_, pixels)| widest(pixels).1 as usize * pixels.len());
        let Some((index, _)) = longest else { break };
        let mut pixels = boxes.swap_remove(index);
        let channel = widest(&pixels).0;
        pixels.sort_by_key(|pixel| pixel[channel]);
        let upper = pixels.split_off(pixels.len() / 2);
        boxes.extend([pixels, upper]);
    }
    boxes.sort_by_key(|pixels| std::cmp::Reverse(pixels.len()));
    boxes
        .iter()
        .filter(|pixels| !pixels.is_empty())
        .map(|pixels| {
            let [r, g, b] = mean(pixels);
            Color { hex: format!("#{r:02x}{g:02x}{b:02x}"), share: pixels.len() as f64 / total }
        })
        .collect()
}

/// The channel with the widest range, and that range.
fn widest(pixels: &[[u8; 3]]) -> (usize, u8) {
    let range = |channel: usize| {
        let values = pixels.iter().map(|pixel| pixel[channel]);
        values.clone().max().unwrap_or(0) - values.min().unwrap_or(0)
    };
    (0..3)
        .map(|channel| (channel, range(channel)))
        .max_by_key(|(_, range)| *range)
        .unwrap_or((0, 0))
}

fn mean(pixels: &[[u8; 3]]) -> [u8; 3] {
    let sum = |channel: usize| pixels.iter().map(|pixel| u64::from(pixel[channel])).sum::<u64>();
    let count = pixels.len().max(1) as u64;
    [0, 1, 2].map(|channel| (sum(channel) / count) as u8)
}
