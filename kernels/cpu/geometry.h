// A convolution's sizes.
#pragma once

extern "C" struct Geometry {
    int n, h, w, c;    // the source
    int oh, ow, oc;    // the output
    int kh, kw, sh, sw, ph, pw, dh, dw, groups;
};
