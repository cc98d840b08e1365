// A model in ik_llama.cpp, for benchmarks/cpu/ik_reader.py: compiled against the headers of the build that it runs in,
// whose structures differ from llama.cpp's.

#include <cstdint>
#include <vector>

#include "llama.h"

namespace {

struct Reader {
  llama_model* model;
  llama_context* context;
  int32_t position;
};

void quiet(ggml_log_level, const char*, void*) {}

}  // namespace

extern "C" {

// nullptr where the file cannot be read. batch: tokens of a prompt in one call.
void* ik_open(const char* path, int32_t threads, int32_t positions, int32_t batch, int32_t kv_bits) {
  llama_log_set(quiet, nullptr);
  llama_backend_init();
  llama_model_params how = llama_model_default_params();
  how.use_mmap = false;  // as repacking wants it
  how.repack_tensors = true;
  llama_model* model = llama_model_load_from_file(path, how);
  if (model == nullptr) return nullptr;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = uint32_t(positions);
  params.n_batch = params.n_ubatch = uint32_t(batch);
  params.n_threads = params.n_threads_batch = uint32_t(threads);
  params.flash_attn = true;
  if (kv_bits == 8) params.type_k = params.type_v = GGML_TYPE_Q8_0;
  llama_context* context = llama_init_from_model(model, params);
  return context == nullptr ? nullptr : new Reader{model, context, 0};
}

// From the start of a text if `begin`, else after what was read. 0, or what `llama_decode` says.
int32_t ik_read(void* opened, const int32_t* tokens, int32_t count, int32_t begin) {
  Reader& reader = *static_cast<Reader*>(opened);
  if (begin) {
    llama_kv_cache_clear(reader.context);
    reader.position = 0;
  }
  std::vector<llama_token> own(tokens, tokens + count);
  const int32_t failed = llama_decode(reader.context, llama_batch_get_one(own.data(), count, reader.position, 0));
  llama_synchronize(reader.context);
  reader.position += count;
  return failed;
}

}  // extern "C"
