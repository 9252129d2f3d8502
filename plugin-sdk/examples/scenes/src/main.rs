//! Scene changes over a sequence of frames: a tool that streams what it finds.
//!
//! Each frame is compared with the one before by the distance of their colour
//! histograms; a cut is a distance far above what the sequence is used to.

use std::collections::VecDeque;

use image::DynamicImage;
use stockade_plugin_sdk::prelude::*;

struct Scenes;

#[derive(Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(deny_unknown_fields)]
struct DetectArgs {
    /// The frames in order, JPEG or PNG
    frames: Vec<Blob>,
    /// Frames per second, for the times of the answer
    #[serde(default = "default_fps")]
    #[schemars(range(min = 0.01, max = 1000.0))]
    fps: f64,
    /// Smallest distance (0 to 1) that can be a cut
    #[serde(default = "default_threshold")]
    #[schemars(range(min = 0.0, max = 1.0))]
    threshold: f64,
}

fn default_fps() -> f64 {
    25.0
}

fn default_threshold() -> f64 {
    0.25
}

/// One cut, sent as it is found.
#[derive(Serialize, JsonSchema)]
struct Cut {
    /// The first frame of the new scene, from 0
    frame: usize,
    /// Seconds from the first frame
    time: f64,
    /// How different it is from the frame before, 0 to 1
    distance: f64,
}

#[derive(Serialize, JsonSchema)]
struct Summary {
    /// Frames seen
    frames: usize,
    /// Cuts found
    cuts: usize,
    /// Scenes, one more than cuts
    scenes: usize,
}

impl Plugin for Scenes {
    fn init(_: &InitContext) -> Result<Self> {
        Ok(Scenes)
    }

    fn tools(tools: &mut Tools<Self>) {
        tools.stream(
            "detect",
            "Finds the cuts in a sequence of frames",
            |_, args: DetectArgs, ctx| detect(&args, ctx),
        );
    }
}

fn detect(args: &DetectArgs, context: &Context) -> Result<Summary> {
    let total = args.frames.len();
    let mut detector = Detector::new(args.threshold);
    let mut cuts = 0;
    for (index, frame) in args.frames.iter().enumerate() {
        context.check()?;
        let picture = image::load_from_memory(frame)
            .map_err(|error| Error::new("BadFrame", format!("frame {index}: {error}")))?;
        if let Some(distance) = detector.cut(&picture) {
            cuts += 1;
            context.emit(&Cut { frame: index, time: index as f64 / args.fps, distance })?;
        }
        context.progress((index + 1) as f64 / total as f64, &format!("frame {}", index + 1));
    }
    Ok(Summary { frames: total, cuts, scenes: if total == 0 { 0 } else { cuts + 1 } })
}

/// Bins per channel.
const BINS: usize = 16;
/// Distances that make the sequence's habit.
const HABIT: usize = 12;
/// A cut is this many times the habit.
const FACTOR: f64 = 3.0;

type Histogram = [f64; 3 * BINS];

/// Remembers the last frame and how much frames usually differ.
struct Detector {
    threshold: f64,
    last: Option<Histogram>,
    habit: VecDeque<f64>,
}

impl Detector {
    fn new(threshold: f64) -> Self {
        Detector { threshold, last: None, habit: VecDeque::new() }
    }

    /// The distance to the frame before, if it is a cut.
    fn cut(&mut self, picture: &DynamicImage) -> Option<f64> {
        let histogram = histogram(picture);
        let last = self.last.replace(histogram)?;
        let distance = distance(&last, &histogram);
        let usual = match self.habit.len() {
            0 => 0.0,
            n => self.habit.iter().sum::<f64>() / n as f64,
        };
        if distance >= self.threshold && distance > usual * FACTOR {
            // A new scene has habits of its own.
            self.habit.clear();
            return Some(distance);
        }
        self.habit.push_back(distance);
        if self.habit.len() > HABIT {
            self.habit.pop_front();
        }
        None
    }
}

fn histogram(picture: &DynamicImage) -> Histogram {
    let small = picture.thumbnail(64, 64).to_rgb8();
    let mut counts = [0.0; 3 * BINS];
    let share = 1.0 / f64::from((small.width() * small.height()).max(1));
    for pixel in small.pixels() {
        for (channel, value) in pixel.0.iter().enumerate() {
            counts[channel * BINS + usize::from(*value) * BINS / 256] += share;
        }
    }
    counts
}

/// Half the sum of differences, averaged over the channels: 0 alike, 1 nothing
/// in common.
fn distance(a: &Histogram, b: &Histogram) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f64>() / 6.0
}

fn main() {
    stockade_plugin_sdk::main::<Scenes>()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::{ImageFormat, Rgb, RgbImage};
    use stockade_plugin_sdk::testing::Harness;

    use super::*;

    fn frame(color: [u8; 3], noise: u8) -> Vec<u8> {
        let mut picture = RgbImage::new(64, 48);
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            let n = ((x * 7 + y * 13) % 16) as u8 + noise;
            *pixel = Rgb(color.map(|c| c.saturating_add(n)));
        }
        let mut png = Vec::new();
        picture.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        png
    }

    #[test]
    fn cuts_are_found_where_the_picture_changes() {
        let plugin = Harness::<Scenes>::start().unwrap();
        let mut call = plugin.call("detect").arg("fps", 10.0);
        for n in 0..30u8 {
            let color = [[200, 30, 30], [30, 200, 30], [30, 30, 200]][usize::from(n) / 10];
            call = call.blob("frames", frame(color, n % 3));
        }
        let outcome = call.run().unwrap();
        let cuts: Vec<_> = outcome.items.iter().map(|cut| cut["frame"].as_u64().unwrap()).collect();
        assert_eq!(cuts, [10, 20]);
        assert_eq!(outcome.items[0]["time"], 1.0);
        assert_eq!(outcome.result["scenes"], 3);
        assert_eq!(outcome.progress.last().unwrap().0, 1.0);
    }

    #[test]
    fn a_broken_frame_is_named_and_a_cancelled_call_stops() {
        let plugin = Harness::<Scenes>::start().unwrap();
        let error = plugin
            .call("detect")
            .blob("frames", frame([1, 2, 3], 0))
            .blob("frames", b"junk".to_vec())
            .run()
            .unwrap_err();
        assert_eq!(error.kind(), "BadFrame");
        assert!(error.message().starts_with("frame 1: "));
        let call = plugin.call("detect").blob("frames", frame([1, 2, 3], 0));
        assert_eq!(call.cancelled().run().unwrap_err().kind(), "Cancelled");
    }
}
