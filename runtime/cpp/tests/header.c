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
    prtool_encoder* encoder = NULL;
    prtool_options options = prtool_options_default(), zero = {0};
    char version[32];

    EXPECT(prtool_open("/nowhere", &zero, &encoder) == PRTOOL_CONFIG && strstr(prtool_last_error(), "struct_size = 0") != NULL)
    EXPECT(prtool_open("/nowhere", &options, &encoder) == PRTOOL_BUNDLE)
    EXPECT(prtool_open("/nowhere", NULL, &encoder) == PRTOOL_BUNDLE && encoder == NULL && strstr(prtool_last_error(), "is not a bundle") != NULL)
    EXPECT(prtool_open(NULL, NULL, &encoder) == PRTOOL_CONFIG)
    EXPECT(prtool_open("/nowhere", &options, NULL) == PRTOOL_CONFIG)
    EXPECT(prtool_get_info(NULL) == NULL && prtool_class_name(NULL, 0) == NULL)
    EXPECT(strlen(prtool_version()) > 0 && strstr(prtool_engines(), "ort") != NULL)
    snprintf(version, sizeof(version), "%d.%d.%d", PRTOOL_VERSION_MAJOR, PRTOOL_VERSION_MINOR, PRTOOL_VERSION_PATCH);
    EXPECT(strcmp(version, prtool_version()) == 0)
    EXPECT(strcmp(prtool_status_string(PRTOOL_BUNDLE), "invalid bundle") == 0)
    EXPECT(strcmp(prtool_status_string(99), "unknown status") == 0)
    prtool_free(NULL);
    return 0;
}
