import sys

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from onnxcompress.data import load_data
from onnxcompress.data.images import PRESETS, Preprocess, parse_preprocess
from onnxcompress.errors import UsageError


def model(image="float[batch, 3, 8, 8] image"):
    body = "y = Constant <value_float: float = 1.0> ()"
    return ir.from_onnx_text(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({image}) => (float y) {{ {body} }}'
    )


def photo(height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def folder_of(path, *photos):
    path.mkdir(exist_ok=True)
    for number, each in enumerate(photos):
        Image.fromarray(each).save(path / f"{number}.png")
    return path


def only(data):
    (feeds,) = data
    (array,) = feeds.values()
    return array


def test_imagenet_divides_by_255_and_takes_mean_and_std_from_each_channel(tmp_path):
    pixels = photo()
    found = only(load_data(folder_of(tmp_path / "p", pixels), model(), preprocess="imagenet(resize=0)"))
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("imagenet-tf(resize=0)", lambda x: x / np.float32(127.5) - 1),
        ("caffe(resize=0)", lambda x: x[..., ::-1] - np.float32([103.939, 116.779, 123.68])),
        ("unit", lambda x: x / np.float32(255)),
        ("raw", lambda x: x),
        ("unit(scale=2, mean=3, std=[4, 5, 6])", lambda x: (x / np.float32(2) - 3) / np.float32([4, 5, 6])),
        ("raw(order=bgr)", lambda x: x[..., ::-1]),
    ],
)
def test_presets_and_settings_do_the_stated_arithmetic(tmp_path, preset, expected):
    pixels = photo()
    found = only(load_data(folder_of(tmp_path / "p", pixels), model(), preprocess=preset))
    np.testing.assert_array_equal(found, expected(pixels.astype(np.float32)).transpose(2, 0, 1)[None])


def test_layout_channels_crop_and_type_come_from_the_input(tmp_path):
    source = folder_of(tmp_path / "p", photo(10, 12))
    last = only(load_data(source, model("uint8[1, 8, 6, 3] image"), preprocess="raw(resize=0)"))
    assert (last.shape, last.dtype) == ((1, 8, 6, 3), np.uint8)
    np.testing.assert_array_equal(last[0], photo(10, 12)[1:9, 3:9])
    gray = only(load_data(source, model("float[n, 1, 8, 6] image"), preprocess="unit(resize=0)"))
    luma = np.asarray(Image.fromarray(photo(10, 12)).convert("L"))[1:9, 3:9]
    np.testing.assert_array_equal(gray, luma[None, None].astype(np.float32) / 255)
    bare = only(load_data(source, model("float[3, 8, 6] image"), preprocess="unit(resize=0)"))
    assert bare.shape == (3, 8, 6)


def test_resize_states_the_shorter_side_and_the_crop_is_central(tmp_path):
    source = folder_of(tmp_path / "p", photo(20, 31))
    found = only(load_data(source, model(), preprocess="raw(resize=10)"))
    small = np.asarray(Image.fromarray(photo(20, 31)).resize((15, 10), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), small[1:9, 3:11])


def test_the_default_resize_is_256_for_a_crop_of_224_and_the_crop_itself_for_plain_presets():
    imagenet = Preprocess(crop=(224, 224), zoom=PRESETS["imagenet"].zoom)
    assert imagenet._resized(500, 375) == (341, 256)
    assert Preprocess(crop=(224, 224))._resized(375, 500) == (224, 298)
    assert Preprocess(crop=(240, 320))._resized(500, 500) == (320, 320)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imagenet", PRESETS["imagenet"]),
        (" raw ( ) ", PRESETS["raw"]),
        ("raw(crop=[240, 320], layout=nhwc)", Preprocess(crop=(240, 320), layout="NHWC")),
        ("raw(crop=32,mean=[1, 2.5, -3])", Preprocess(crop=(32, 32), mean=(1.0, 2.5, -3.0))),
    ],
)
def test_the_text_of_a_preprocessing_is_a_preset_and_settings(text, expected):
    assert parse_preprocess(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "imagnet: no such preprocessing; did you mean imagenet"),
        ("imagenet(", "expected such as imagenet"),
        ("raw(sized=3)", "raw: sized: no such setting; did you mean"),
        ("raw(resize=big)", "raw: resize is 'big', expected the shorter side in pixels, 0 for no resizing"),
        ("raw(resize=-1)", "resize is '-1'"),
        ("raw(crop=0)", "crop is '0', expected a side in pixels or"),
        ("raw(crop=[1, 2, 3])", "crop is"),
        ("raw(scale=0)", "scale is '0', expected a number above 0"),
        ("raw(mean=nan)", "mean is 'nan'"),
        ("raw(std=[1, 0, 1])", "std is"),
        ("raw(layout=CHWN)", "layout is 'CHWN', expected NCHW or NHWC"),
        ("raw(order)", "order is ''"),
    ],
)
def test_refuses_a_preprocessing_that_makes_no_sense(text, message):
    with pytest.raises(UsageError, match=message):
        parse_preprocess(text)


@pytest.mark.parametrize(
    ("image", "preprocess", "message"),
    [
        ("float[n, 3, h, w] image", "unit", r"input image is \[n, 3, h, w\], expected crop= to say its size"),
        ("float[n, 3, 8, 3] image", "unit", "expected layout=NCHW or NHWC"),
        ("float[n, 7, 8, 8] image", "unit", "the layout of .* is not clear"),
        ("float[n, 64] image", "unit", "expected an image of 3 or 4 axes"),
        ("float[n, 1, 8, 8] image", "imagenet", "3 means and 3 deviations, expected 1 or 1 for GRAY"),
        ("float[n, 3, 8, 8] image", "unit(crop=4)", r"makes images \[3, 4, 4\], expected \[n, 3, 8, 8\]"),
        ("float[n, 3, 8, 8] image", "unit(order=GRAY)", r"makes images \[1, 8, 8\]"),
        ("uint8[n, 3, 8, 8] image", "unit", "input image is float32, expected uint8"),
        ("float[n, 3, 8, 8] image", "unit(resize=4)", "image is 4x4, smaller than the crop 8x8"),
        ("float[n, 3, 8, 8] image", None, "images need a preprocessing, one of imagenet, imagenet-tf"),
        ("float[n, 3, 8, 8] image, float[n] size", "unit", "images are one input, expected arrays by name"),
    ],
)
def test_says_what_of_the_preprocessing_does_not_fit_the_model(tmp_path, image, preprocess, message):
    with pytest.raises(UsageError, match=message):
        load_data(folder_of(tmp_path / "p", photo()), model(image), preprocess=preprocess)


def test_labels_come_from_the_table_beside_the_images_in_the_order_of_names(tmp_path):
    source = folder_of(tmp_path / "p", photo(), photo(), photo())
    (source / "labels.csv").write_text("file,label\n2.png,7\n0.png,5\n1.png,6\nelsewhere.png,1\n")
    data = load_data(source, model(), preprocess="unit")
    np.testing.assert_array_equal(data.labels, [5, 6, 7])


def test_labels_are_the_places_of_the_folders_where_images_are_sorted_into_folders(tmp_path):
    folder_of(tmp_path / "p", *[])
    folder_of(tmp_path / "p" / "cat", photo(), photo())
    folder_of(tmp_path / "p" / "dog", photo())
    data = load_data(tmp_path / "p", model(), preprocess="unit", batch=2)
    np.testing.assert_array_equal(data.labels, [0, 0, 1])
    assert [len(feeds["image"]) for feeds in data] == [2, 1]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n0.png,1\n", "labels.csv: 1.png has no label, expected one for each image"),
        ("file,label\n0.png,cat\n1.png,dog\n", "labels.csv: is not a table with the columns file and label"),
        ("name,class\n0.png,1\n", "labels.csv: is not a table"),
        ("file,label\n0.png\n1.png,2\n", "labels.csv: is not a table"),
    ],
)
def test_refuses_a_table_of_labels_that_does_not_fit(tmp_path, table, message):
    source = folder_of(tmp_path / "p", photo(), photo())
    (source / "labels.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        load_data(source, model(), preprocess="unit")


@pytest.mark.parametrize("kind", ["text", "truncated", "empty"])
def test_names_the_image_that_is_not_readable(tmp_path, kind):
    source = folder_of(tmp_path / "p", photo(), photo(50, 50))
    whole = (source / "1.png").read_bytes()
    broken = {"text": b"no image", "truncated": whole[: len(whole) // 2], "empty": b""}[kind]
    (source / "1.png").write_bytes(broken)
    data = load_data(source, model(), preprocess="unit")
    with pytest.raises(UsageError, match=r"^1.png: is not a readable image: .*"):
        list(data)


def test_reads_a_file_by_what_it_holds_and_not_by_the_end_of_its_name(tmp_path):
    source = folder_of(tmp_path / "p", photo())
    (source / "0.png").rename(source / "0.jpg")
    assert only(load_data(source, model(), preprocess="unit")).shape == (1, 3, 8, 8)


def test_refuses_formats_that_pillow_gives_to_other_programs(tmp_path):
    source = folder_of(tmp_path / "p", photo())
    (source / "0.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(UsageError, match=r"0.png: is not a readable image: cannot identify"):
        load_data(source, model(), preprocess="unit")


def test_refuses_to_blow_up_a_narrow_image(tmp_path):
    source = folder_of(tmp_path / "p", photo(1, 2000))
    with pytest.raises(UsageError, match="pixels after resizing, expected fewer"):
        load_data(source, model(), preprocess="unit(resize=4000)")


def test_gray_images_and_images_with_transparency_become_rgb(tmp_path):
    source = folder_of(tmp_path / "p")
    Image.fromarray(photo()[..., 0]).save(source / "0.png")
    Image.fromarray(np.dstack([photo(), photo()[..., 0]])).save(source / "1.png")
    Image.fromarray(photo()).quantize(16).save(source / "2.png")
    data = load_data(source, model(), preprocess="raw", batch=3)
    np.testing.assert_array_equal(only(data)[0], np.repeat(photo()[None, ..., 0], 3, 0))
    np.testing.assert_array_equal(only(data)[1], photo().transpose(2, 0, 1))


def test_only_wanted_images_are_read(tmp_path):
    source = folder_of(tmp_path / "p", *[photo(seed=seed) for seed in range(6)])
    (source / "1.png").write_bytes(b"not read")
    (source / "labels.csv").write_text(
        "file,label\n" + "".join(f"{place}.png,{place}\n" for place in range(6))
    )
    data = load_data(f"{source}[::3]", model(), preprocess="raw")
    np.testing.assert_array_equal(data.labels, [0, 3])
    np.testing.assert_array_equal(list(data)[1]["image"][0], photo(seed=3).transpose(2, 0, 1))


def test_says_that_pillow_is_missing(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "p", photo())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        UsageError, match=r"Pillow is not installed, expected pip install onnxcompress\[images\]"
    ):
        load_data(source, model(), preprocess="unit")
