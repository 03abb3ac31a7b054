// How a call is cut into items: bands of rows of large images, groups of small ones, and parts of the output
// channels where the weights outweigh the pixels. By shape alone, never by thread count.
#pragma once
#include "base.h"

struct Items {
    int images, rows;  // of an item
    int groups, bands, parts;

    int count() const { return groups * bands * parts; }
    int places() const { return groups * bands; }          // groups of images or bands of rows
    // a place's parts follow each other: what they read is formed once
    int place(int item) const { return item / parts; }
    int first_image(int item) const { return place(item) / bands * images; }
    int first_row(int item) const { return place(item) % bands * rows; }
    int first_channel(int item, int C) const { return channel(item % parts, C); }
    int last_channel(int item, int C) const { return channel(item % parts + 1, C); }

  private:
    int channel(int part, int C) const {  // whole blocks of two vectors
        const int blocks = (C + 2 * L - 1) / (2 * L),
                  c = static_cast<int>(static_cast<long>(blocks) * part / parts) * 2 * L;
        return c < C ? c : C;
    }
};

// n images of `height` rows; `row_bytes` of working memory a row, `units` a row that one weight serves:
// pixels, or Winograd's tiles. Every place reads all the weights: where they are large, fewer and larger
// places, and parts instead, that there is work for every thread.
inline Items cut(
    int n, int height, size_t row_bytes, double units, int row_unit, size_t weight_bytes, int C) {
    constexpr size_t room = 512 << 10;  // half of the L2 of a small core
    const bool large = weight_bytes > (1 << 20);
    const int least = large ? 4 : 16, enough = large ? 256 : 64;
    int rows = static_cast<int>(room / (row_bytes ? row_bytes : 1));
    rows = rows < row_unit ? row_unit : rows / row_unit * row_unit;
    if (rows > height) rows = height;
    const int bands = (height + rows - 1) / rows;
    rows = round_up((height + bands - 1) / bands, row_unit);  // as even as can be
    if (rows > height) rows = height;
    while (rows > row_unit && n * ((height + rows - 1) / rows) < least)
        rows = round_up((rows + 1) / 2, row_unit);
    int images = 1;
    if (rows >= height)
        while (images * units * height < enough && n / (images * 2) >= (large ? 1 : least)
            && images * 2 * row_bytes * height <= room)
            images *= 2;
    Items items{images, rows, (n + images - 1) / images, (height + rows - 1) / rows, 1};
    // each transforms its tiles anew
    while (large && items.count() < 16 && items.parts * 2 * 128 <= C) items.parts *= 2;
    return items;
}

// The same for weights that every place transforms anew: places of some `most` tiles (of M rows each, `tiles`
// in a row of them), and a part of the output channels for every block.
inline Items cut_tiles(int n, int height, int M, int tiles, int most, int C) {
    const int lines = (height + M - 1) / M,
              rows = most / tiles < 1 ? 1 : most / tiles < lines ? most / tiles : lines;
    const int bands = (lines + rows - 1) / rows, parts = (C + 2 * L - 1) / (2 * L);
    int images = bands > 1 || most < lines * tiles ? 1 : most / (lines * tiles);
    const int groups = (n + images - 1) / images;
    images = (n + groups - 1) / groups;
    const int even = (lines + bands - 1) / bands * M;
    return {images, even < height ? even : height, groups, bands, parts};
}
