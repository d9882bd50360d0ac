/* embed BUNDLE IMAGE...: the embedding of each image, in C. */
#include <prtool.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char** words) {
    prtool_encoder* encoder = NULL;
    const prtool_info* info;
    float* embeddings;
    int image, axis, status = 1;

    if (count < 3) {
        fputs("usage: embed BUNDLE IMAGE...\n", stderr);
        return 2;
    }
    if (prtool_open(words[1], NULL, &encoder) != PRTOOL_OK) {
        fprintf(stderr, "%s\n", prtool_last_error());
        return 1;
    }
    info = prtool_get_info(encoder);
    embeddings = malloc(sizeof(float) * (size_t)info->embed_dim * (size_t)(count - 2));
    if (embeddings == NULL || prtool_encode_files(encoder, (const char* const*)words + 2, count - 2, prtool_keep_ratio(0.6), embeddings) != PRTOOL_OK) {
        fprintf(stderr, "%s\n", prtool_last_error());
    } else {
        for (image = 0; image < count - 2; ++image) {
            for (axis = 0; axis < 4; ++axis) printf("%+.4f ", embeddings[image * info->embed_dim + axis]);
            printf("... %s\n", words[image + 2]);
        }
        status = 0;
    }
    free(embeddings);
    prtool_free(encoder);
    return status;
}
