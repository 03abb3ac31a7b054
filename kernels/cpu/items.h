// How a call is cut into items: bands of rows of large images, groups of small ones. By shape alone, never by thread count.
#pragma once
#include "base.h"

struct Items {
    int images, rows;  // of an item
    int groups, bands;

    int count() const { return groups * bands; }
    int first_image(int item) const { return item / bands * images; }
    int first_row(int item) const { return item % bands * rows; }
};

// n images of `height` rows; `row_bytes` of working memory a row. `tiles` > 0 asks for items of about 64 tiles (Winograd).
// Every item reads all the weights: where they are more than a cache holds, fewer and larger items.
inline Items cut(int n, int height, size_t row_bytes, int tiles, int row_unit, size_t weight_bytes) {
    constexpr size_t room = 512 << 10;  // half of the L2 of a small core
    const int least = weight_bytes > (1 << 20) ? 4 : 16;
    int rows = static_cast<int>(room / (row_bytes ? row_bytes : 1));
    rows = rows < row_unit ? row_unit : rows / row_unit * row_unit;
    if (rows > height) rows = height;
    while (rows > row_unit && n * ((height + rows - 1) / rows) < least) rows = round_up((rows + 1) / 2, row_unit);
    int images = 1;
    if (rows >= height && tiles > 0)
        while (images * tiles < 64 && n / (images * 2) >= least && images * 2 * row_bytes * height <= room) images *= 2;
    return {images, rows, (n + images - 1) / images, (height + rows - 1) / rows};
}
