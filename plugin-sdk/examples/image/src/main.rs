//! An image plugin: thumbnails, dominant colours, hashes, EXIF. Real work on
//! real pictures; take it as it is, or as a pattern.

mod colors;
mod exif;
mod hash;

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder as _, ImageFormat, ImageReader};
use stockade_plugin_sdk::prelude::*;

/// A decoder is not to be talked into allocating more than this.
const MAX_PIXELS: u64 = 200_000_000;

struct ImagePlugin;

#[derive(Deserialize, JsonSchema)]
struct Picture {
    /// A JPEG or PNG
    image: Blob,
}

#[derive(Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(deny_unknown_fields)]
struct ThumbnailArgs {
    /// A JPEG or PNG
    image: Blob,
    /// Longest side in pixels
    #[serde(default = "default_width")]
    #[schemars(range(min = 1, max = 4096))]
    width: u32,
    /// JPEG quality
    #[serde(default = "default_quality")]
    #[schemars(range(min = 1, max = 100))]
    quality: u8,
}

fn default_width() -> u32 {
    256
}

fn default_quality() -> u8 {
    85
}

#[derive(Serialize, JsonSchema)]
struct Thumbnail {
    /// Pixels
    width: u32,
    /// Pixels
    height: u32,
    /// The JPEG
    thumbnail: Blob,
}

#[derive(Deserialize, JsonSchema)]
struct ColorArgs {
    /// A JPEG or PNG
    image: Blob,
    /// How many colours
    #[serde(default = "default_colors")]
    #[schemars(range(min = 1, max = 16))]
    count: usize,
}

fn default_colors() -> usize {
    5
}

#[derive(Serialize, JsonSchema)]
struct Description {
    /// `jpeg` or `png`
    format: String,
    /// Pixels, as it is to be shown
    width: u32,
    /// Pixels, as it is to be shown
    height: u32,
    /// Most frequent first
    colors: Vec<colors::Color>,
    /// A few characters that unfold to a blurred preview (blurha.sh)
    blurhash: String,
    /// 64 bits in hexadecimal; near pictures differ in few bits
    perceptual_hash: String,
    /// What the camera wrote
    exif: std::collections::BTreeMap<String, String>,
}

impl Plugin for ImagePlugin {
    fn init(_: &InitContext) -> Result<Self> {
        Ok(ImagePlugin)
    }

    fn tools(tools: &mut Tools<Self>) {
        tools
            .add(
                "thumbnail",
                "Makes a small JPEG of a picture",
                |_, args: ThumbnailArgs, context| {
                    let picture = decode(&args.image)?;
                    context.check()?;
                    thumbnail(&picture, args.width, args.quality)
                },
            )
            .add("colors", "Finds the dominant colours of a picture", |_, args: ColorArgs, _| {
                Ok(colors::dominant(&decode(&args.image)?, args.count))
            })
            .add(
                "blurhash",
                "A short text that unfolds to a blurred preview",
                |_, args: Picture, _| hash::blurhash(&decode(&args.image)?),
            )
            .add("phash", "A perceptual hash, to find near duplicates", |_, args: Picture, _| {
                Ok(hash::perceptual(&decode(&args.image)?))
            })
            .add("exif", "What the camera wrote into the file", |_, args: Picture, _| {
                Ok(exif::fields(&args.image))
            })
            .add("describe", "All of it about a picture at once", |_, args: Picture, context| {
                let picture = decode(&args.image)?;
                context.progress(0.3, "decoded");
                let colors = colors::dominant(&picture, 5);
                context.progress(0.6, "colours");
                context.check()?;
                Ok(Description {
                    format: format_of(&args.image)?,
                    width: picture.width(),
                    height: picture.height(),
                    colors,
                    blurhash: hash::blurhash(&picture)?,
                    perceptual_hash: hash::perceptual(&picture),
                    exif: exif::fields(&args.image),
                })
            });
    }
}

fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>> {
    Ok(ImageReader::new(Cursor::new(bytes)).with_guessed_format()?)
}

fn format_of(bytes: &[u8]) -> Result<String> {
    let format = reader(bytes)?.format();
    Ok(format.map_or("unknown", |format| format.extensions_str()[0]).replace("jpg", "jpeg"))
}

/// The picture, turned as its orientation says.
fn decode(bytes: &[u8]) -> Result<DynamicImage> {
    let bad = |error: image::ImageError| Error::new("BadImage", error.to_string());
    let mut decoder = reader(bytes)?.into_decoder().map_err(bad)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let text = format!("{width} × {height} pixels are more than this plugin decodes");
        return Err(Error::new("ImageTooLarge", text));
    }
    let orientation = decoder.orientation().map_err(bad)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(bad)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

fn thumbnail(picture: &DynamicImage, side: u32, quality: u8) -> Result<Thumbnail> {
    let small = picture.thumbnail(side, side).to_rgb8();
    let mut jpeg = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, quality);
    small.write_with_encoder(encoder)?;
    Ok(Thumbnail {
        width: small.width(),
        height: small.height(),
        thumbnail: Blob::typed(jpeg, ImageFormat::Jpeg.to_mime_type()),
    })
}

fn main() {
    stockade_plugin_sdk::main::<ImagePlugin>()
}

#[cfg(test)]
mod tests {
    use stockade_plugin_sdk::testing::Harness;

    use super::*;

    const PHOTO: &[u8] = include_bytes!("../photo.jpg");

    fn plugin() -> Harness<ImagePlugin> {
        Harness::start().unwrap()
    }

    #[test]
    fn a_thumbnail_is_a_jpeg_of_the_size_asked_for() {
        let outcome = plugin()
            .call("thumbnail")
            .arg("width", 64)
            .blob("image", PHOTO.to_vec())
            .run()
            .unwrap();
        let (name, blob) = &outcome.attachments[0];
        assert_eq!((name.as_str(), blob.content_type()), ("thumbnail", "image/jpeg"));
        let small = image::load_from_memory(blob).unwrap();
        assert_eq!(small.width().max(small.height()), 64);
        assert_eq!(outcome.result["thumbnail"], "attachment:thumbnail");
    }

    #[test]
    fn a_description_tells_what_is_in_the_file() {
        let outcome = plugin().call("describe").blob("image", PHOTO.to_vec()).run().unwrap();
        assert_eq!(outcome.result["format"], "jpeg");
        assert_eq!(outcome.result["exif"]["Artist"], "Stefan van der Walt");
        assert_eq!(outcome.result["colors"].as_array().unwrap().len(), 5);
        assert!(outcome.result["blurhash"].as_str().unwrap().len() > 10);
        let shares: f64 = outcome.result["colors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["share"].as_f64().unwrap())
            .sum();
        assert!(shares > 0.5 && shares <= 1.001, "{shares}");
    }

    #[test]
    fn near_pictures_have_near_hashes_and_others_do_not() {
        let hash = |bytes: Vec<u8>| {
            let outcome = plugin().call("phash").blob("image", bytes).run().unwrap();
            u64::from_str_radix(outcome.result.as_str().unwrap(), 16).unwrap()
        };
        let small = plugin()
            .call("thumbnail")
            .arg("width", 100)
            .blob("image", PHOTO.to_vec())
            .run()
            .unwrap();
        let original = hash(PHOTO.to_vec());
        let near = (original ^ hash(small.attachments[0].1.to_vec())).count_ones();
        let mut turned = Vec::new();
        let picture = image::load_from_memory(PHOTO).unwrap().rotate180();
        picture.write_to(&mut Cursor::new(&mut turned), ImageFormat::Jpeg).unwrap();
        let far = (original ^ hash(turned)).count_ones();
        assert!(near <= 6 && far >= 16, "near {near}, far {far}");
    }

    #[test]
    fn what_is_no_picture_is_an_error_with_a_type() {
        let error =
            plugin().call("colors").blob("image", b"not a picture".to_vec()).run().unwrap_err();
        assert_eq!(error.kind(), "BadImage");
    }
}
