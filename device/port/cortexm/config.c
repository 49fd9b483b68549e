/* By itself, so that no compiler folds values that are written into the finished image. */
#include "cortexm.h"

__attribute__((section(".mh_config"), used)) const mh_config mh_image_config = { MH_CONFIG_MAGIC, MH_CONFIG_FRESH, 0, 1, { 0 } };
