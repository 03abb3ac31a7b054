// How many floats a vector holds in this build: packed weights are laid out by it.
#include "base.h"

extern "C" int fastbn_lanes() { return L; }
