/* The public header compiled as C, and the calls that need no bundle. */
#include <stdio.h>
#include <string.h>

#include "prtool.h"

#define EXPECT(holds)                                                      \
    if (!(holds)) {                                                        \
        fprintf(stderr, "line %d: %s\n", __LINE__, prtool_last_error());   \
        return 1;                                                          \
    }

int main(void) {
    const float scores[] = {1.0f, 3.0f, 3.0f, 2.0f};
    int64_t indices[3] = {-1, -1, -1};
    prtool_encoder* encoder = NULL;
    prtool_options options = {0};

    EXPECT(prtool_select(scores, 1, 4, 3, indices) == PRTOOL_OK && indices[0] == 1 && indices[1] == 2 && indices[2] == 3)
    EXPECT(prtool_select(scores, 1, 4, 5, indices) == PRTOOL_KEEP && strstr(prtool_last_error(), "k = 5") != NULL && indices[0] == 1)
    EXPECT(prtool_select(NULL, 1, 4, 3, indices) == PRTOOL_CONFIG)
    EXPECT(prtool_select(scores, INT64_MAX, INT64_MAX, 3, indices) == PRTOOL_SHAPE)
    EXPECT(prtool_open("/nowhere", NULL, &encoder) == PRTOOL_BUNDLE && encoder == NULL && strstr(prtool_last_error(), "is not a bundle") != NULL)
    EXPECT(prtool_open(NULL, NULL, &encoder) == PRTOOL_CONFIG)
    EXPECT(prtool_open("/nowhere", &options, NULL) == PRTOOL_CONFIG)
    EXPECT(prtool_info_of(NULL) == NULL && prtool_class_name(NULL, 0) == NULL)
    EXPECT(strlen(prtool_version()) > 0 && strstr(prtool_engines(), "ort") != NULL)
    prtool_close(NULL);
    prtool_free(NULL);
    return 0;
}
